"""A file of captions that grows by one record at a time.

A record is written when its picture is done. A run that is killed leaves complete records and at
most one incomplete record. `resume` removes the incomplete record and appends to the others.
"""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from fastvlm_onnx.errors import InputError
from fastvlm_onnx.runtime.captions.caption import Caption
from fastvlm_onnx.runtime.captions.record_formats import RecordFormat


class RecordFile:
    """A file of captions that this run alone writes.

    Attributes:
        path: the file.
        answered: paths of pictures that have an answer in the file.
        failed: paths of pictures that have an error in the file and no answer.
    """

    def __init__(self, path: Path, form: RecordFormat, *, resume: bool) -> None:
        """Make the file, or read its records and remove an incomplete record at its end.

        Args:
            path: the file.
            form: the form of its records.
            resume: append to the file if it exists; without it, an existing file is an error.

        Raises:
            InputError: the file exists already, cannot be written, or has a record that is no
                caption.
        """
        self.path, self._form = path, form
        try:
            mode = "r+b" if resume and path.exists() else "x+b"
            self._file: IO[bytes] = path.open(mode, buffering=0)
        except FileExistsError:
            raise InputError(
                f"{path}: exists already; append to it with --resume, or name another file."
            ) from None
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror}).") from None
        try:
            self.answered, self.failed = self._read()
        except InputError:
            self._file.close()
            raise

    def pending(self, paths: Iterable[str]) -> list[str]:
        """Return the paths that have no answer in the file."""
        return [path for path in paths if path not in self.answered]

    def write(self, caption: Caption) -> None:
        """Append a caption's record, complete or not at all.

        Raises:
            InputError: the record cannot be written; the records before it are kept.
        """
        end = self._file.tell()
        header = b"" if end else self._form.header
        content = memoryview(header + self._form.encode(caption))
        try:
            while content:  # a disk that fills up takes a part of the record first
                content = content[self._file.write(content) :]
        except OSError as error:
            os.ftruncate(self._file.fileno(), end)
            raise self._not_written(error) from None
        (self.failed if caption.error is not None else self.answered).add(caption.path)

    def drop_errors(self, paths: Iterable[str]) -> None:
        """Remove the errors of pictures that are about to be tried again.

        The file is replaced at once, so a run that is killed here leaves the old records or the
        new.

        Raises:
            InputError: the file cannot be written; it is kept as it was.
        """
        dropped = self.failed & set(paths)
        if not dropped:
            return
        kept = [record for record in self.records() if self._form.decode(record)[0] not in dropped]
        target = Path(os.path.realpath(self.path))  # a symbolic link stays one
        copy = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            copy.write_bytes(self._form.header + b"".join(kept))
            shutil.copymode(target, copy)
            self._file.close()  # Windows replaces no file that is open
            copy.replace(target)
            self._file = target.open("r+b", buffering=0)
        except OSError as error:
            copy.unlink(missing_ok=True)
            raise self._not_written(error) from None
        self._file.seek(0, os.SEEK_END)
        self.failed -= dropped

    def records(self) -> list[bytes]:
        """Return the complete records without the header."""
        self._file.seek(0)
        records = self._form.split(self._file.read())
        if self._form.header and records:
            return records[1:]
        return records

    def close(self) -> None:
        """Close the file, and remove it if it is empty, so that the next run can make it."""
        if not self.answered and not self.failed:
            self.remove()
        self._file.close()

    finish = close

    def remove(self) -> None:
        """Close and remove the file."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def _read(self) -> tuple[set[str], set[str]]:
        """Read the complete records, and cut off an incomplete record at the end.

        Returns:
            The paths with an answer, and the paths with an error and no answer.
        """
        answered: set[str] = set()
        failed: set[str] = set()
        records, form = self._form.split(self._file.read()), self._form
        for number, record in enumerate(records, 1):
            if number == 1 and record == form.header:
                continue
            try:
                if number == 1 and form.header:
                    raise ValueError("the header is another")
                path, is_error = form.decode(record)
            except (ValueError, KeyError, TypeError):
                raise InputError(
                    f"{self.path}: {form.noun} {number} is not a caption; expected "
                    f"{form.expected}. Name another file, or repair this one."
                ) from None
            (failed if is_error else answered).add(path)
        complete_bytes = sum(map(len, records))
        os.ftruncate(self._file.fileno(), complete_bytes)
        self._file.seek(complete_bytes)
        return answered, failed - answered

    def _not_written(self, error: OSError) -> InputError:
        return InputError(
            f"{self.path}: cannot be written ({error.strerror}); the {self._form.noun}s in it are "
            "complete: free some space, then go on with --resume."
        )
