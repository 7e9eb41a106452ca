"""The options of `fastvlm-onnx serve`, made of the server's settings."""

import math
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import click

from fastvlm_onnx.server.settings import Settings

# 0 is a free port, no grace, or a cache that keeps nothing.
_MAY_BE_ZERO = frozenset({"port", "grace_seconds", "prefix_cache_mb", "image_cache_mb"})
_LARGEST = {"port": 65_535}
# Of seconds and megabytes: threads cannot wait much longer.
_LARGEST_AMOUNT = 10**9


def server_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, which gets them as a dictionary named `settings`."""
    shown = [field for field in fields(Settings) if field.metadata]

    @wraps(command)
    def with_settings(*args: Any, **given: Any) -> Any:
        settings = {field.name: given.pop(field.name) for field in shown}
        return command(*args, settings=settings, **given)

    decorated: Callable[..., Any] = with_settings
    for field in reversed(shown):
        name = field.metadata["flag"] or field.name.replace("_", "-")
        decorated = _option(f"--{name}", field.name, field.default, field.metadata["help"])(
            decorated
        )
    return decorated


class FiniteRange(click.FloatRange):
    """A range of numbers without NaN, which no comparison refuses."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is not a number; give a number in the range.", param, ctx)
        return number


def _option(flag: str, name: str, default: Any, text: str) -> Callable[[Any], Any]:
    if default is False:
        return click.option(flag, name, is_flag=True, help=text)
    hint = get_type_hints(Settings)[name]
    if get_origin(hint) is tuple:
        return click.option(flag, name, multiple=True, help=text)
    (kind,) = (kind for kind in get_args(hint) or (hint,) if kind is not NoneType)
    if kind is Path:
        kind = click.Path(path_type=Path)
    elif kind in (int, float):
        is_least_open = name not in _MAY_BE_ZERO
        kind = (
            click.IntRange(int(is_least_open), _LARGEST.get(name))
            if kind is int
            else FiniteRange(0, _LARGEST_AMOUNT, min_open=is_least_open)
        )
    return click.option(
        flag, name, type=kind, default=default, show_default=default is not None, help=text
    )
