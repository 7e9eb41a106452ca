"""The options that say what runs where, the same for every command that opens a package."""

from collections.abc import Callable
from typing import Any

import click


def provider_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --provider, --provider-option and --provider-library."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def register(libraries: dict[str, str]) -> None:
    """Make the plugins known that --provider-library named."""
    if libraries:
        from fastvlm_onnx.runtime.providers import register_library

        for name, path in libraries.items():
            register_library(name, path)


def _pairs(_: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"{value!r} is not {parameter.metavar}.")
        pairs[name] = rest
    return pairs


_OPTIONS = (
    click.option(
        "--provider",
        "providers",
        default="auto",
        show_default=True,
        help="cpu, cuda, coreml, openvino, ... for all graphs, or vision=coreml,decoder=cpu.",
    ),
    click.option(
        "--provider-option",
        "options",
        multiple=True,
        metavar="NAME=VALUE",
        callback=_pairs,
        help="For the provider asked for; may be repeated.",
    ),
    click.option(
        "--provider-library",
        "libraries",
        multiple=True,
        metavar="NAME=PATH",
        callback=_pairs,
        help="A plugin provider: ONNX Runtime's name for it, and its library.",
    ),
)
