"""A command's option that names a file of JSON."""

import json
from pathlib import Path
from typing import Any

import click

from fastvlm_onnx.errors import InputError


def read_json_object(
    _context: click.Context, _option: click.Parameter, path: Path | None
) -> dict[str, Any] | None:
    """The callback of an option: the object in the file that was named.

    Raises:
        InputError: the file cannot be read, or holds no JSON object.
    """
    if path is None:
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); expected a JSON object.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: a JSON {type(content).__name__}; expected a JSON object.")
    return content
