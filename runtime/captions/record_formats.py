"""Forms of a caption in a file that grows by one record at a time: a line of JSON, a row of CSV."""

import csv
import io
import json
from typing import Final, Protocol

from fastvlm_onnx.runtime.captions.caption import COLUMNS, Caption, json_line, table_row

# A file's name may be invalid UTF-8. CSV keeps its bytes.
_NAMES: Final = "surrogateescape"


class RecordFormat(Protocol):
    """How captions become records, and records captions.

    Attributes:
        header: the first record of a file; empty for a format without a header.
        noun: the name of a record in messages.
        expected: the content of a record in messages.
    """

    header: bytes
    noun: str
    expected: str

    def encode(self, caption: Caption) -> bytes:
        """Return a caption's record."""

    def split(self, content: bytes) -> list[bytes]:
        """Return the complete records of a file, without an incomplete record at its end."""

    def decode(self, record: bytes) -> tuple[str, bool]:
        """Return the path of a record, and whether the record has an error.

        Raises:
            ValueError, KeyError, TypeError: the record is not a caption.
        """


class JsonLines:
    """A line of JSON for each caption, with the fields that have a value."""

    header = b""
    noun = "line"
    expected = "JSON with a path"

    def encode(self, caption: Caption) -> bytes:
        return json_line(caption.fields()).encode() + b"\n"

    def split(self, content: bytes) -> list[bytes]:
        return [line + b"\n" for line in content.split(b"\n")[:-1]]

    def decode(self, record: bytes) -> tuple[str, bool]:
        fields = json.loads(record)
        return str(fields["path"]), "error" in fields


class Csv:
    """A row of CSV (RFC 4180, UTF-8) for each caption, below a header with COLUMNS."""

    noun = "row"
    expected = f"the columns {', '.join(COLUMNS)}"

    def __init__(self) -> None:
        self.header = _csv_row(COLUMNS)

    def encode(self, caption: Caption) -> bytes:
        return _csv_row(tuple(table_row(caption.fields()).values()))

    def split(self, content: bytes) -> list[bytes]:
        # A line's end belongs to a text while a quotation is open.
        records: list[bytes] = []
        lines: list[bytes] = []
        quotes = 0
        for line in content.split(b"\n")[:-1]:
            lines.append(line + b"\n")
            quotes += line.count(b'"')
            if quotes % 2 == 0:
                records.append(b"".join(lines))
                lines.clear()
        return records

    def decode(self, record: bytes) -> tuple[str, bool]:
        text = io.StringIO(record.decode("utf-8", _NAMES), newline="")
        try:
            (values,) = csv.reader(text)
        except csv.Error as error:
            raise ValueError(str(error)) from None
        fields = dict(zip(COLUMNS, values, strict=True))
        return fields["path"], fields["error"] != ""


def _csv_row(values: tuple[object, ...]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerow(values)
    return text.getvalue().encode("utf-8", _NAMES)
