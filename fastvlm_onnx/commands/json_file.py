"""A command's option that names a file of JSON."""

import json
from pathlib import Path
from typing import Any

import click

from fastvlm_onnx.errors import InputError


class JsonFile(click.ParamType):
    """The path of a file that holds a JSON object; the command gets the object."""

    name = "file"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, Any]:
        """Read the file.

        Raises:
            InputError: the file cannot be read, or holds no JSON object.
        """
        del param, ctx
        path = Path(value)
        try:
            content = json.loads(path.read_text("utf-8"))
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}).") from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: not JSON ({error}); expected a JSON object.") from None
        if not isinstance(content, dict):
            raise InputError(f"{path}: a JSON {type(content).__name__}; expected a JSON object.")
        return content
