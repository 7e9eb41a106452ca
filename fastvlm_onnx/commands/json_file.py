"""A command's option that names a file of JSON."""

from pathlib import Path
from typing import Any

import click

from fastvlm_onnx.errors import InputError
from fastvlm_onnx.untrusted_files import read_json_object


def json_object(
    _context: click.Context, _option: click.Parameter, path: Path | None
) -> dict[str, Any] | None:
    """The callback of an option: the object in the file that was named.

    Raises:
        InputError: the file cannot be read, or holds no JSON object.
    """
    if path is None:
        return None
    try:
        return read_json_object(path, InputError, "give a file with a JSON object")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give a file with a JSON object.") from None
