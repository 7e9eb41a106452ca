"""Captions of a Ray dataset as files of JSON lines, in the form of `fastvlm-onnx caption`."""

import json
from typing import Any

from ray.data.block import BlockAccessor
from ray.data.datasource import BlockBasedFileDatasink

from fastvlm_onnx.runtime.captions.caption import json_line


class JsonLinesFiles(BlockBasedFileDatasink):
    """A folder of files with a line of JSON for each caption."""

    def __init__(self, path: str, *, rows_per_file: int, filesystem: Any) -> None:
        """Take the folder.

        Args:
            path: the folder in its file system.
            rows_per_file: the smallest number of rows in a file, but for the last.
            filesystem: a file system of pyarrow.
        """
        super().__init__(
            path, min_rows_per_file=rows_per_file, file_format="jsonl", filesystem=filesystem
        )

    def write_block_to_file(self, block: BlockAccessor, file: Any) -> None:
        """Write the captions of a block."""
        for row in block.to_arrow().to_pylist():
            fields = {name: value for name, value in row.items() if value is not None}
            if "parsed" in fields:
                fields["parsed"] = json.loads(fields["parsed"])
            file.write(json_line(fields).encode() + b"\n")
