"""The result for a picture, and its form in a line of JSON and in a row of a table."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fastvlm_onnx.runtime.answering.results import Generation

COLUMNS: Final = ("path", "text", "parsed", "finish_reason", "seconds", "error")
"""The columns of a table of captions. Lines of JSON have the same names, where there is a value."""


@dataclass(frozen=True)
class Caption:
    """The result for one picture: an answer or an error.

    Attributes:
        path: the picture's path, as it was given or found.
        generation: the answer; None if the picture could not be read.
        error: why the picture could not be read; None if there is an answer.
    """

    path: str
    generation: Generation | None
    error: str | None

    def fields(self) -> dict[str, Any]:
        """Return the values by the names of COLUMNS, without those that are None."""
        fields: dict[str, Any] = {"path": self.path}
        if self.generation is None:
            fields["error"] = self.error
        else:
            timings = self.generation.timings
            seconds = timings.preprocess + timings.vision + timings.prefill + timings.decode
            fields["text"] = self.generation.text
            if self.generation.parsed is not None:
                fields["parsed"] = self.generation.parsed
            fields["finish_reason"] = self.generation.finish_reason
            fields["seconds"] = round(seconds, 3)
        return fields

    def to_json(self) -> str:
        """Return the caption as one line of JSON."""
        return json_line(self.fields())


def json_line(fields: Mapping[str, Any]) -> str:
    """Return the fields of a caption as one line of JSON, without the line's end."""
    line = json.dumps(fields, ensure_ascii=False)
    # A file's name may be invalid UTF-8. JSON's escapes keep its bytes.
    return line if _is_utf8(line) else json.dumps(fields)


def table_row(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a caption as a row with all COLUMNS.

    Returns:
        Texts, a number for `seconds`, and None where there is no value. `parsed` is JSON's text,
        since its type differs from row to row.
    """
    row = {name: fields.get(name) for name in COLUMNS}
    if row["parsed"] is not None:
        row["parsed"] = json.dumps(row["parsed"], ensure_ascii=False)
    return row


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
