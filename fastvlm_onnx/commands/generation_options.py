"""The options of an answer, the same for every command that answers.

Names, types and defaults are those of `GenerationConfig`.
"""

from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import click

from fastvlm_onnx.commands.json_file import json_object
from fastvlm_onnx.runtime.engine.options import GenerationConfig

_HELP = {
    "max_new_tokens": "The largest number of tokens in an answer.",
    "temperature": "0 takes the most probable token.",
    "top_k": "Draw among this many of the most probable tokens; 0 is off.",
    "top_p": "Draw among the most probable tokens that reach this probability.",
    "min_p": "Draw among tokens at least this probable, relative to the most probable.",
    "repetition_penalty": "Above 1, tokens of the answer become less probable.",
    "seed": "Make a drawn answer repeatable.",
    "stop": "End the answer before this text; may be repeated.",
    "max_time": "Seconds after which the answer ends.",
    "orient": "Rotate the picture as its EXIF data say.",
    "schema": "Answer with JSON that this file's JSON Schema describes.",
    "regex": "Answer with a text that this regular expression matches.",
    "choices": "Answer with this text or another --choice; may be repeated.",
}
_DEFAULTS = {field.name: field.default for field in fields(GenerationConfig)}


def generation_options(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add options to a command, which gets them as a dictionary named `generation`.

    Args:
        names: fields of `GenerationConfig`, in the order of the help text.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def with_generation(*args: Any, **given: Any) -> Any:
            generation = {name: given.pop(name) for name in names}
            return command(*args, generation=generation, **given)

        decorated: Callable[..., Any] = with_generation
        for name in reversed(names):
            decorated = _option(name)(decorated)
        return decorated

    return decorate


def _option(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    flag, default = f"--{name.replace('_', '-')}", _DEFAULTS[name]
    if name == "schema":
        path = click.Path(path_type=Path)
        return click.option(flag, type=path, metavar="FILE", callback=json_object, help=_HELP[name])
    if name == "choices":
        # Without a choice the answer is free, so an empty tuple becomes the default.
        return click.option(
            "--choice", name, multiple=True, callback=lambda *a: a[2] or default, help=_HELP[name]
        )
    if default is False:
        return click.option(flag, is_flag=True, help=_HELP[name])
    if default == ():
        return click.option(flag, multiple=True, help=_HELP[name])
    hint = get_type_hints(GenerationConfig)[name]
    (number,) = (kind for kind in get_args(hint) or (hint,) if kind is not NoneType)
    return click.option(
        flag, type=number, default=default, show_default=default is not None, help=_HELP[name]
    )
