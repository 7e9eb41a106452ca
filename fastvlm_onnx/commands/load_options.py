"""The options that say how a package is opened, the same for every command that opens one."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import fastvlm_onnx
from fastvlm_onnx.commands.default_package import model_folder

if TYPE_CHECKING:
    from fastvlm_onnx.runtime.model import FastVLM


@dataclass(frozen=True)
class Opening:
    """What was asked for.

    Attributes:
        options: of the providers.
        libraries: of plugin providers, by ONNX Runtime's name for each.
    """

    precision: str | None
    providers: str
    options: dict[str, str]
    libraries: dict[str, str]
    image_size: int | None
    threads: int | None

    def register(self) -> None:
        """Make the plugins known that --provider-library named."""
        if self.libraries:
            from fastvlm_onnx.runtime.ort.providers import register_library

            for name, path in self.libraries.items():
                register_library(name, path)

    def load(self, package: str | Path | None, **more: Any) -> "FastVLM":
        """Open a package with these options.

        Args:
            package: a folder or a hub id; the default package when None.
            more: further keyword arguments of `fastvlm_onnx.load`.
        """
        from fastvlm_onnx.runtime.hub import package_folder

        self.register()
        folder = model_folder() if package is None else package
        return fastvlm_onnx.load(
            package_folder(folder, shows_progress=True),
            precision=self.precision,
            providers=self.providers,
            provider_options=self.options,
            image_size=self.image_size,
            threads=self.threads,
            **more,
        )


def opening_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options, and give the command an `opening` in their place."""

    @wraps(command)
    def with_opening(*args: Any, **given: Any) -> Any:
        asked = {name: given.pop(name) for name in Opening.__dataclass_fields__}
        return command(*args, opening=Opening(**asked), **given)

    decorated: Callable[..., Any] = with_opening
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


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
        "--precision", help="A variant of the package; what suits the provider by default."
    ),
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
    click.option("--image-size", type=int, help="One the package was exported for."),
    click.option("--threads", type=int, help="Per graph; one per physical core by default."),
)
