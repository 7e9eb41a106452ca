"""The places that captions are written to, opened by the file's suffix and locked."""

import errno
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from fastvlm_onnx.errors import InputError
from fastvlm_onnx.optional_packages import optional_packages
from fastvlm_onnx.runtime.captions.caption import Caption
from fastvlm_onnx.runtime.captions.record_file import RecordFile
from fastvlm_onnx.runtime.captions.record_formats import Csv, JsonLines


class Destination(Protocol):
    """A place for captions. Each picture has one caption in it.

    Attributes:
        answered: pictures that have an answer.
        failed: pictures that have an error and no answer.
    """

    @property
    def answered(self) -> Collection[str]: ...

    @property
    def failed(self) -> Collection[str]: ...

    def pending(self, paths: Iterable[str]) -> list[str]:
        """Return the paths of pictures that have no answer."""

    def drop_errors(self, paths: Iterable[str]) -> None:
        """Remove the errors of pictures that are about to be tried again.

        Raises:
            InputError: the destination cannot be written; it is kept as it was.
        """

    def write(self, caption: Caption) -> None:
        """Add a caption.

        Raises:
            InputError: the caption cannot be written; those before it are kept.
        """

    def finish(self) -> None:
        """End a run that asked about every picture.

        Raises:
            InputError: the destination cannot be written; the captions are kept.
        """

    def close(self) -> None:
        """End a run before its end, so that another run can resume it."""


@contextmanager
def caption_file(path: Path, *, resume: bool) -> Iterator[Destination]:
    """Open a file of captions and lock it.

    Args:
        path: the file; `.csv` and `.parquet` give a table, any other suffix JSON lines.
        resume: append to the file if it exists; without it, an existing file is an error.

    Raises:
        InputError: the file exists already, another run is writing it, a record of it is not a
            caption, or it cannot be written.
    """
    with locked(path):
        file = _opener(path)(resume=resume)
        try:
            yield file
        except BaseException:
            file.close()
            raise
        file.finish()


def _opener(path: Path) -> Callable[..., Destination]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        with optional_packages("writing parquet", "parquet"):
            from fastvlm_onnx.runtime.captions.parquet_file import ParquetFile

        return partial(ParquetFile, path)
    return partial(RecordFile, path, Csv() if suffix == ".csv" else JsonLines())


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other runs from writing a file or folder.

    Args:
        path: the file or folder, which need not exist; its parent must.

    Raises:
        InputError: another run is writing it, or its parent cannot be written.
    """
    # The lock is a file of its own, because a file of captions may be replaced.
    lock_path = path.with_name(f".{path.name}.lock")
    lock = FileLock(lock_path)
    try:
        if not path.parent.is_dir():  # some versions of filelock make the folder
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"{path}: another run is writing it; wait for that run, or name another file."
        ) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}).") from None
    try:
        yield
    finally:
        # Removed while it is held: a run that waits for it sees that. Windows removes it itself.
        with suppress(OSError):
            lock_path.unlink()
        lock.release()
