"""Packages that only some jobs need."""

from collections.abc import Iterator
from contextlib import contextmanager

from fastvlm_onnx.errors import InputError


@contextmanager
def optional_packages(job: str, extra: str) -> Iterator[None]:
    """Import packages of an extra, or say how to install it.

    Args:
        job: the job that needs the packages, for example "exporting".
        extra: the extra of fastvlm-onnx that has them.

    Raises:
        InputError: a package is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise InputError(
            f"{job} needs packages that are not installed ({error.name}); "
            f'run `pip install "fastvlm-onnx[{extra}]"`.'
        ) from None
