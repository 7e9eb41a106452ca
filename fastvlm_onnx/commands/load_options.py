"""The options of opening a package, the same for every command that opens one."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import fastvlm_onnx
from fastvlm_onnx.errors import InputError

if TYPE_CHECKING:
    from fastvlm_onnx.runtime.model import FastVLM


@dataclass(frozen=True)
class LoadOptions:
    """How the user wants a package to be opened.

    Attributes:
        precision: a variant of the package; the best for the providers when None.
        providers: as `fastvlm_onnx.load` takes them.
        provider_options: names and values for the providers.
        provider_libraries: paths of plugin providers' libraries, by ONNX Runtime's name.
        image_size: side of the square input in pixels; the package's default when None.
        threads: threads for each graph; one for each physical core when None.
    """

    precision: str | None
    providers: str
    provider_options: dict[str, str]
    provider_libraries: dict[str, str]
    image_size: int | None
    threads: int | None

    def register_libraries(self) -> None:
        """Register the plugin providers that --provider-library names.

        `load` does the same. A command calls this first if it exports the built-in model before it
        calls `load`.

        Raises:
            ProviderError: a library cannot be registered.
        """
        if self.provider_libraries:
            from fastvlm_onnx.runtime.ort.plugins import register_library

            for name, path in self.provider_libraries.items():
                register_library(name, path)

    def load(self, package: str | Path, **more: Any) -> "FastVLM":
        """Open a package with these options.

        Args:
            package: a folder or a hub id.
            more: further keyword arguments of `fastvlm_onnx.load`.
        """
        from fastvlm_onnx.runtime.hub import package_folder

        self.register_libraries()
        return fastvlm_onnx.load(
            package_folder(package, shows_progress=True),
            precision=self.precision,
            providers=self.providers,
            provider_options=self.provider_options,
            image_size=self.image_size,
            threads=self.threads,
            **more,
        )


def load_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, which gets them as a `LoadOptions` named `options`."""

    @wraps(command)
    def with_load_options(*args: Any, **given: Any) -> Any:
        values = {name: given.pop(name) for name in LoadOptions.__dataclass_fields__}
        return command(*args, options=LoadOptions(**values), **given)

    decorated: Callable[..., Any] = with_load_options
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


def list_option(name: str, help: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """An option for a list: with commas in one option, in several options, or both.

    The command gets the list as one text with commas; None without the option.
    """

    def join(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> str | None:
        return ",".join(values) if values else None

    return click.option(name, multiple=True, callback=join, help=help)


def parse_numbers(text: str, option: str) -> list[int]:
    """Parse integers separated by commas.

    Args:
        text: the option's value.
        option: the option's name, for the error.

    Raises:
        InputError: a part is not an integer.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} is {text!r}; expected numbers separated by commas.") from None


def _parse_pairs(
    _: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    pairs = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"{value!r} is not {parameter.metavar}.")
        pairs[name] = rest
    return pairs


_OPTIONS = (
    click.option(
        "--precision", help="A variant of the package; by default the best for the provider."
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
        "provider_options",
        multiple=True,
        metavar="NAME=VALUE",
        callback=_parse_pairs,
        help="For the named provider; may be repeated.",
    ),
    click.option(
        "--provider-library",
        "provider_libraries",
        multiple=True,
        metavar="NAME=PATH",
        callback=_parse_pairs,
        help="A plugin provider: ONNX Runtime's name for it, and the path of its library.",
    ),
    click.option("--image-size", type=int, help="A size that the package was exported for."),
    click.option(
        "--threads", type=int, help="For each graph; by default one for each physical core."
    ),
)
