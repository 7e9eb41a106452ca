"""Captions as an Arrow table. Needs pyarrow, an extra."""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from fastvlm_onnx.runtime.captions.caption import COLUMNS, table_row

SCHEMA = pa.schema([(name, pa.float64() if name == "seconds" else pa.string()) for name in COLUMNS])
"""A string column for each of COLUMNS, but for `seconds`, float64."""


def caption_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Return captions as a table with SCHEMA.

    Args:
        rows: the fields of each caption, as `Caption.fields` returns them.
    """
    listed = [table_row(fields) | {"path": unicode_name(fields["path"])} for fields in rows]
    return pa.Table.from_pylist(listed, SCHEMA)


def unicode_name(path: str) -> str:
    r"""Return a file's name as valid Unicode, bytes that are no UTF-8 as `\udc80` to `\udcff`."""
    return path.encode("utf-8", "backslashreplace").decode()
