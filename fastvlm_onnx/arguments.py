"""Checks of the arguments of public functions: one table by the argument's name.

A function with `@checks_arguments` gets each argument that the table names as plain Python has it:
numpy's numbers become int and float, paths become str. Another type, NaN and a number out of range
are an InputError that names the argument. Standard library only.
"""

import math
import operator
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from inspect import signature
from typing import Any, Final, ParamSpec, TypeVar

from fastvlm_onnx.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

LARGEST_NUMBER: Final = 2**53  # no count and no size is near it
LARGEST_FLOAT: Final = sys.float_info.max

Check = Callable[[str, Any], Any]
"""Takes an argument's name and value; returns the value, or raises InputError."""


@dataclass(frozen=True)
class Whole:
    """A whole number.

    Attributes:
        least: the smallest that is taken.
        expected: the range in words.
        most: the largest that is taken.
    """

    least: int
    expected: str
    most: int = LARGEST_NUMBER

    def __call__(self, name: str, value: Any) -> int:
        """Return the number as an int."""
        try:
            number = operator.index(value)
        except TypeError:
            raise _other_type(name, value, "a whole number") from None
        if _is_bool(value):
            raise _other_type(name, value, "a whole number")
        if not self.least <= number <= self.most:
            raise InputError(f"{name} is {_shown(number)}; expected {self.expected}.")
        return number


@dataclass(frozen=True)
class Real:
    """A number in a range.

    Attributes:
        least: the lower end.
        most: the upper end.
        expected: the range in words.
        takes_least: whether the lower end is in the range.
    """

    least: float
    most: float
    expected: str
    takes_least: bool = False

    def __call__(self, name: str, value: Any) -> float:
        """Return the number as a float."""
        # numpy takes an array with one element as a number, and warns of it.
        if _is_bool(value) or _is_array(value) or not hasattr(type(value), "__float__"):
            raise _other_type(name, value, "a number")
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise _other_type(name, value, "a number") from None
        if not self.least < number <= self.most and not (self.takes_least and number == self.least):
            raise InputError(f"{name} is {value}; expected {self.expected}.")
        return number


@dataclass(frozen=True)
class Optional:
    """None, or a value that another check takes."""

    check: Check

    def __call__(self, name: str, value: Any) -> Any:
        """Return None or the checked value."""
        return None if value is None else self.check(name, value)


def flag(name: str, value: Any) -> bool:
    """True or False; numpy's too."""
    if not _is_bool(value):
        raise _other_type(name, value, "True or False")
    return bool(value)


def text(name: str, value: Any) -> str:
    """A text."""
    if not isinstance(value, str):
        raise _other_type(name, value, "a text")
    return value


def path(name: str, value: Any) -> Any:
    """A path that the system can look up; the file need not exist."""
    if not isinstance(value, str | os.PathLike):
        raise _other_type(name, value, "a path")
    try:
        os.lstat(value)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError, TypeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{name} is {value!r}, no usable path ({reason}).") from None
    return value


def items(name: str, value: Any) -> list[Any]:
    """A list of things, or another collection of them."""
    if isinstance(value, str | bytes | bytearray | memoryview | Mapping):
        raise _other_type(name, value, "a list")
    try:
        return list(value)
    except Exception:  # the value's own methods raise anything
        raise _other_type(name, value, "a list") from None


@dataclass(frozen=True)
class ListOf:
    """A list.

    Attributes:
        check: takes each item.
        least: the smallest number of items.
    """

    check: Check
    least: int = 0

    def __call__(self, name: str, value: Any) -> tuple[Any, ...]:
        """Return the checked items."""
        if isinstance(value, str):
            raise InputError(f"{name} is a text; expected a list of them, like [{value!r}].")
        listed = items(name, value)
        if len(listed) < self.least:
            raise InputError(f"{name} is []; expected at least one text, none of them empty.")
        return tuple(self.check(f"{name}[{index}]", item) for index, item in enumerate(listed))


def full_text(name: str, value: Any) -> str:
    """A text that is not empty."""
    if not text(name, value):
        raise InputError(f"{name} is ''; expected a text that is not empty.")
    return value


def prompts(name: str, value: Any) -> Any:
    """A prompt, or a list of prompts."""
    return value if isinstance(value, str) else items(name, value)


def options(name: str, value: Any) -> dict[str, Any]:
    """Names with values."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise _other_type(name, value, "names with values, as a dict")
    return dict(value)


def providers(name: str, value: Any) -> Any:
    """Providers in any form that `load` takes; their names are looked up later."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return {key: _provider(name, item) for key, item in options(name, value).items()}
    return [_provider(name, item) for item in items(name, value)]


def _provider(name: str, value: Any) -> Any:
    """A provider's name, or a pair of its name and its options."""
    is_pair = isinstance(value, tuple | list) and len(value) == 2
    if isinstance(value, str) or (
        is_pair and isinstance(value[0], str) and isinstance(value[1], Mapping)
    ):
        return value
    raise _other_type(name, value, "a provider's name, or a pair of its name and a dict of options")


def flag_or_path(name: str, value: Any) -> Any:
    """True, False or a path."""
    return bool(value) if _is_bool(value) else path(name, value)


def instance(name: str, value: Any, kind: type[T]) -> T:
    """An object of a class of this library.

    Raises:
        InputError: the object is of another class.
    """
    if not isinstance(value, kind):
        raise _other_type(name, value, f"a {kind.__name__}")
    return value


def function(name: str, value: Any) -> Any:
    """A function."""
    if not callable(value):
        raise _other_type(name, value, "a function")
    return value


COUNT: Final = Whole(1, "1 or more")
ROOM: Final = Whole(0, "0 (off) or more")
ARGUMENTS: Final[Mapping[str, Check]] = {
    # Opening a package.
    "folder": path,
    "precision": Optional(text),
    "image_size": Optional(COUNT),
    "threads": Optional(Whole(1, "1 or more, and at most 1,024", 1024)),
    "image_cache_bytes": ROOM,
    "prefix_cache_bytes": ROOM,
    "providers": providers,
    "provider_options": Optional(options),
    "lazy_vision": flag,
    "record_placement": flag,
    # Generation.
    "max_new_tokens": COUNT,
    "max_time": Optional(Real(0, math.inf, "seconds above 0")),
    "stop": ListOf(full_text),
    "choices": Optional(ListOf(full_text, least=1)),
    "regex": Optional(full_text),
    "prompts": prompts,
    "temperature": Real(0, LARGEST_FLOAT, "0 or more", takes_least=True),
    "top_k": ROOM,
    "top_p": Real(0, 1, "above 0 and at most 1"),
    "min_p": Real(0, 1, "0 (off) to 1", takes_least=True),
    "repetition_penalty": Real(0, LARGEST_FLOAT, "above 0, 1 being off"),
    "seed": Optional(Whole(0, "0 or more", 2**64 - 1)),
    "logprobs": flag,
    "top_logprobs": ROOM,
    "on_token": Optional(function),
    "orient": flag,
    "ignore_eos": flag,
    "drop_oldest": flag,
    # A scheduler.
    "max_rows": COUNT,
    "max_waiting": COUNT,
    "max_seen": COUNT,
    "see_seconds": Real(0, math.inf, "seconds above 0"),
    "count": COUNT,
    "grace": Optional(Real(0, 1e9, "seconds, 0 or more", takes_least=True)),
    "timeout": Optional(Real(0, 1e9, "seconds, 0 or more", takes_least=True)),
    "id": text,
    # Exporting and verifying.
    "source": path,
    "checkpoint": path,
    "destination": path,
    "base": Optional(path),
    "operators": text,
    "target": Optional(text),
    "allow_nonfinite": flag,
    "overwrite": flag,
    "add": flag,
    "split_decoder": flag,
    "precisions": Optional(ListOf(text)),
    # export says which sizes are built.
    "image_sizes": Optional(ListOf(Whole(-LARGEST_NUMBER, "a whole number of pixels"))),
    "calibrate": flag_or_path,
    "steps": COUNT,
    "progress": function,
    "download_progress": function,
    "verify": Optional(function),
}


def checks_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Check the arguments that ARGUMENTS names before a function runs."""
    parameters = signature(function)
    names = [name for name in parameters.parameters if name in ARGUMENTS]

    @wraps(function)
    def with_checked_arguments(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = parameters.bind(*args, **kwargs)
        for name in names:
            if name in bound.arguments:
                bound.arguments[name] = ARGUMENTS[name](name, bound.arguments[name])
        return function(*bound.args, **bound.kwargs)

    return with_checked_arguments


def _is_bool(value: Any) -> bool:
    # numpy is not imported here; its truth values are no numbers either.
    return isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")


def _is_array(value: Any) -> bool:
    return hasattr(type(value), "__array__") and getattr(value, "ndim", 0) != 0


def _other_type(name: str, value: Any, expected: str) -> InputError:
    return InputError(f"{name} is {_shown(value)} ({type(value).__name__}); expected {expected}.")


def _shown(value: Any) -> str:
    """The beginning of a value's representation; Python prints no number of 5,000 digits."""
    try:
        return repr(value)[:60]
    except Exception:
        return "a value that cannot be printed"
