"""Old names of the library that still work, with a warning."""

import warnings
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

ENDS_WITH = "0.3"


def warn_renamed(old: str, new: str, *, stacklevel: int = 2) -> None:
    """Warn that a name of the library is an old one."""
    warnings.warn(
        f"{old} is now {new}; the old name ends with {ENDS_WITH}.",
        DeprecationWarning,
        stacklevel=stacklevel + 1,
    )


def renamed(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function take old parameter names, old=new, with a DeprecationWarning."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def with_old_names(*args: P.args, **kwargs: P.kwargs) -> R:
            for old, new in names.items():
                if old in kwargs:
                    warn_renamed(f"the parameter {old!r}", repr(new))
                    kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return with_old_names

    return decorate
