"""The options that several commands share: one definition for each."""

from dataclasses import fields

import click
import pytest

from fastvlm_onnx.cli import cli
from fastvlm_onnx.errors import InputError
from fastvlm_onnx.optional_packages import optional_packages
from fastvlm_onnx.runtime.engine.options import GenerationConfig


def options_of(command: str) -> dict[str, click.Option]:
    parameters = cli.commands[command].params
    return {str(p.name): p for p in parameters if isinstance(p, click.Option)}


@pytest.mark.parametrize("command", ["generate", "chat", "caption"])
def test_generation_options_have_the_defaults_of_the_library(command: str) -> None:
    options, defaults = options_of(command), {f.name: f.default for f in fields(GenerationConfig)}
    shared = set(options) & set(defaults)
    assert {"max_new_tokens", "orient"} <= shared
    arguments = ["x"] * sum(isinstance(p, click.Argument) for p in cli.commands[command].params)
    context = cli.commands[command].make_context(command, arguments)
    for name in shared:
        # A flag that is repeated names a single text.
        flag = "choice" if name == "choices" else name.replace("_", "-")
        assert options[name].opts == [f"--{flag}"]
        assert context.params[name] == defaults[name]


def test_load_options_are_the_same_for_every_command_that_opens_a_package() -> None:
    names = {"precision", "providers", "provider_options", "provider_libraries", "image_size"}
    expected = {name: options_of("generate")[name].opts for name in names | {"threads"}}
    for command in ("chat", "caption", "doctor"):
        found = {name: options_of(command)[name].opts for name in expected}
        assert found == expected


def test_a_missing_package_is_named_with_the_extra_that_has_it() -> None:
    expected = r'weighing needs packages .* \(absent_package\); run `pip install ".*\[scales\]"`'
    with pytest.raises(InputError, match=expected), optional_packages("weighing", "scales"):
        import absent_package  # noqa: F401
