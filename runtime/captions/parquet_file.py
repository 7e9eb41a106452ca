"""A parquet file of captions, made at the end of a run from a journal of JSON lines.

A parquet file cannot grow. A run that is killed leaves the journal, and `resume` goes on with it.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from fastvlm_onnx.errors import InputError
from fastvlm_onnx.runtime.captions.caption import Caption
from fastvlm_onnx.runtime.captions.record_file import RecordFile
from fastvlm_onnx.runtime.captions.record_formats import JsonLines
from fastvlm_onnx.runtime.captions.table import SCHEMA, caption_table, unicode_name

_ROWS_AT_ONCE: Final = 10_000


class ParquetFile:
    """A parquet file of captions that this run alone writes.

    The file appears or changes as a whole, in `finish`.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        """Open the journal, which stands beside the file.

        Args:
            path: the parquet file, with the columns of `table.SCHEMA`.
            resume: add to the file or journal that exists; without it, either is an error.

        Raises:
            InputError: the file or its journal exists already, cannot be written or read, or is of
                another form.
        """
        self.path = path
        self._old_answered: set[str] = set()
        self._old_failed: set[str] = set()
        if path.exists():
            if not resume:
                raise InputError(
                    f"{path}: exists already; add to it with --resume, or name another file."
                )
            self._read_old()
        journal = path.with_name(f"{path.name}.unfinished.jsonl")
        self._journal = RecordFile(journal, JsonLines(), resume=resume)

    @property
    def answered(self) -> set[str]:
        """Names of pictures that have an answer."""
        return self._old_answered | set(map(unicode_name, self._journal.answered))

    @property
    def failed(self) -> set[str]:
        """Names of pictures that have an error and no answer."""
        failed = self._old_failed | set(map(unicode_name, self._journal.failed))
        return failed - self.answered

    def pending(self, paths: Iterable[str]) -> list[str]:
        """Return the paths that have no answer."""
        answered = self.answered
        return [path for path in paths if unicode_name(path) not in answered]

    def drop_errors(self, paths: Iterable[str]) -> None:
        """Remove errors of pictures that are about to be tried again.

        Raises:
            InputError: the journal cannot be written; it is kept as it was.
        """
        # A row of the old file goes when the journal has a new row for its picture.
        self._journal.drop_errors(paths)

    def write(self, caption: Caption) -> None:
        """Add a caption to the journal.

        Raises:
            InputError: the journal cannot be written; the captions in it are kept.
        """
        self._journal.write(caption)

    def finish(self) -> None:
        """Make the parquet file of the old file and the journal, and remove the journal.

        Raises:
            InputError: the file cannot be written; the old file and the journal are kept.
        """
        if not self._journal.answered and not self._journal.failed:
            self.close()
            return
        target = Path(os.path.realpath(self.path))  # a symbolic link stays one
        copy = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            with pq.ParquetWriter(copy, SCHEMA) as writer:
                for table in (*self._old_rows(), *self._new_rows()):
                    writer.write_table(table)
            copy.replace(target)
        except (OSError, pa.ArrowException) as error:
            copy.unlink(missing_ok=True)
            raise InputError(
                f"{self.path}: cannot be written ({error}); the captions are in "
                f"{self._journal.path}: free some space, then go on with --resume."
            ) from None
        self._journal.remove()

    def close(self) -> None:
        """Keep the journal for a run with `resume`, unless it is empty."""
        self._journal.close()

    def _read_old(self) -> None:
        try:
            with pq.ParquetFile(self.path) as file:
                if not file.schema_arrow.equals(SCHEMA):
                    raise InputError(
                        f"{self.path}: has the columns {', '.join(file.schema_arrow.names)[:200]}; "
                        f"expected captions ({', '.join(SCHEMA.names)}). Name another file."
                    )
                for batch in file.iter_batches(_ROWS_AT_ONCE, columns=["path", "error"]):
                    for row in batch.to_pylist():
                        has_error = row["error"] is not None
                        (self._old_failed if has_error else self._old_answered).add(row["path"])
        except (OSError, pa.ArrowException) as error:
            raise InputError(
                f"{self.path}: cannot be read as parquet ({str(error).splitlines()[0][:200]}); "
                "name another file."
            ) from None

    def _old_rows(self) -> Iterator[pa.Table]:
        if not self.path.exists():
            return
        replaced = set(map(unicode_name, self._journal.answered | self._journal.failed))
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(_ROWS_AT_ONCE):
                paths = batch.column("path").to_pylist()
                kept = pa.array([path not in replaced for path in paths], pa.bool_())
                yield pa.Table.from_batches([batch]).filter(kept).cast(SCHEMA)

    def _new_rows(self) -> Iterator[pa.Table]:
        records = self._journal.records()
        for begin in range(0, len(records), _ROWS_AT_ONCE):
            yield caption_table(map(json.loads, records[begin : begin + _ROWS_AT_ONCE]))
