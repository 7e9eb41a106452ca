"""One question about many pictures: a file with a line of JSON for each picture.

A line is written and flushed when its picture is done. A run that is killed leaves complete lines
and at most one incomplete line. `resume` removes the incomplete line and appends to the others.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from filelock import FileLock, Timeout

from fastvlm_onnx.errors import FastVLMError, InputError
from fastvlm_onnx.runtime.answering.results import Generation
from fastvlm_onnx.runtime.engine.options import GenerationConfig
from fastvlm_onnx.runtime.vision.image_encoder import ImageFeatures, PixelValues

if TYPE_CHECKING:
    from fastvlm_onnx.runtime.model import FastVLM

# Suffixes of the files that are taken from a folder. A file given by its name may have any suffix.
SUFFIXES: Final = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


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

    def to_json(self) -> str:
        """Return the caption as one line of JSON."""
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
        line = json.dumps(fields, ensure_ascii=False)
        # A file's name may be invalid UTF-8. JSON's escapes keep its bytes.
        return line if _is_utf8(line) else json.dumps(fields)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def find_pictures(given: Iterable[str]) -> list[str]:
    """Find the pictures that files, folders and patterns mean.

    Args:
        given: paths of files, paths of folders (searched at any depth for SUFFIXES), and patterns
            such as `photos/*.jpg`.

    Returns:
        Paths without duplicates, in the order of `given`; sorted within a folder or pattern.

    Raises:
        InputError: a path is empty, or no picture was found.
    """
    found: dict[str, None] = {}
    for name in given:
        if not name:
            raise InputError("a path is empty; give a file, a folder or a pattern.")
        path = Path(name)
        if path.is_dir():
            inside = (p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            found |= dict.fromkeys(sorted(map(str, inside)))
        elif any(character in name for character in "*?[") and not path.exists():
            import glob

            matches = sorted(glob.glob(name, recursive=True))
            found |= dict.fromkeys(match for match in matches if not os.path.isdir(match))
        else:
            found[name] = None
    if not found:
        raise InputError(
            "found no pictures; give files, folders with "
            f"{', '.join(SUFFIXES)} in them, or a pattern like 'photos/*.jpg'."
        )
    return list(found)


def caption(
    model: "FastVLM",
    paths: Sequence[str],
    prompt: str,
    *,
    batch_size: int,
    **options: Any,
) -> Iterator[Caption]:
    """Ask the same question about each picture, in batches.

    The next batch's pictures are read while a batch is answered. A picture that cannot be read
    gives a caption with an error.

    Args:
        model: answers the question.
        paths: files with pictures.
        prompt: the question.
        batch_size: pictures in a batch, 1 or more.
        options: the keyword arguments of `FastVLM.generate_batch`.

    Yields:
        A caption for each path, in the order of `paths`.

    Raises:
        InputError: an option cannot be used.
    """
    config = GenerationConfig(**options)
    model.components().constraints.check(config)
    batches = [paths[i : i + batch_size] for i in range(0, len(paths), batch_size)]
    encoder = model.image_encoder

    def read(path: str) -> PixelValues | ImageFeatures | FastVLMError:
        try:
            return encoder.read(path, orient=config.orient)
        except FastVLMError as error:
            return error

    with ThreadPoolExecutor(1) as pool:
        # Only one batch is read ahead, because pixel_values of a large folder do not fit in memory.
        reading = [pool.submit(read, path) for path in batches[0]]
        for number, batch in enumerate(batches):
            images = [future.result() for future in reading]
            next_batch = batches[number + 1] if number + 1 < len(batches) else ()
            reading = [pool.submit(read, path) for path in next_batch]
            readable = [image for image in images if not isinstance(image, FastVLMError)]
            features = [encoder.encode(image) for image in readable]
            answers = iter(model.generate_batch(features, prompt, **options) if readable else [])
            for path, image in zip(batch, images, strict=True):
                if isinstance(image, FastVLMError):
                    yield Caption(path, None, str(image))
                else:
                    yield Caption(path, next(answers), None)


class CaptionFile:
    """A file of captions that this run alone writes.

    Attributes:
        path: the file.
        answered: paths of pictures that have an answer in the file.
        failed: paths of pictures that have an error in the file and no answer.
    """

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        """Read the lines of a file, and remove an incomplete line at its end.

        Args:
            path: the file's path.
            file: the same file, opened for reading and writing without a buffer.

        Raises:
            InputError: a line is not a caption.
        """
        self.path, self._file = path, file
        self.answered, self.failed = _read_captions(file, path)

    def write(self, caption: Caption) -> None:
        """Append a caption's line, complete or not at all.

        Raises:
            InputError: the line cannot be written; the lines before it are kept.
        """
        end = self._file.tell()
        content = memoryview(caption.to_json().encode() + b"\n")
        try:
            while content:  # a disk that fills up takes a part of the line first
                content = content[self._file.write(content) :]
        except OSError as error:
            os.ftruncate(self._file.fileno(), end)
            raise self._not_written(error) from None
        (self.failed if caption.error is not None else self.answered).add(caption.path)

    def drop_errors(self, paths: Iterable[str]) -> None:
        """Remove the error lines of pictures that are about to be tried again.

        The file is replaced at once, so a run that is killed here leaves the old lines or the new.

        Raises:
            InputError: the file cannot be written; it is kept as it was.
        """
        dropped = self.failed & set(paths)
        if not dropped:
            return
        self._file.seek(0)
        lines = self._file.read().splitlines(keepends=True)
        kept = [line for line in lines if _read_line(line)[0] not in dropped]
        target = Path(os.path.realpath(self.path))  # a symbolic link stays one
        copy = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            copy.write_bytes(b"".join(kept))
            shutil.copymode(target, copy)
            self._file.close()  # Windows replaces no file that is open
            copy.replace(target)
            self._file = target.open("r+b", buffering=0)
        except OSError as error:
            copy.unlink(missing_ok=True)
            raise self._not_written(error) from None
        self._file.seek(0, os.SEEK_END)
        self.failed -= dropped

    def close(self) -> None:
        """Close the file, and remove it if it is empty, so that the next run can make it."""
        is_empty = not self.answered and not self.failed
        self._file.close()
        if is_empty:
            self.path.unlink(missing_ok=True)

    def _not_written(self, error: OSError) -> InputError:
        return InputError(
            f"{self.path}: cannot be written ({error.strerror}); the lines in it are complete: "
            "free some space, then go on with --resume."
        )


@contextmanager
def caption_file(path: Path, *, resume: bool) -> Iterator[CaptionFile]:
    """Open a file of captions and lock it.

    Args:
        path: the file.
        resume: append to the file if it exists; without it, an existing file is an error.

    Raises:
        InputError: the file exists already, another run is writing it, a line of it is not a
            caption, or it cannot be written.
    """
    # The lock is a file of its own: `drop_errors` replaces the file of captions.
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
        with closing(_open_captions(path, resume)) as file:
            yield file
    finally:
        # Removed while it is held: a run that waits for it sees that. Windows removes it itself.
        with suppress(OSError):
            lock_path.unlink()
        lock.release()


def _open_captions(path: Path, resume: bool) -> CaptionFile:
    try:
        file = path.open("r+b" if resume and path.exists() else "x+b", buffering=0)
    except FileExistsError:
        raise InputError(
            f"{path}: exists already; append to it with --resume, or name another file."
        ) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}).") from None
    try:
        return CaptionFile(path, file)
    except InputError:
        file.close()
        raise


def _read_captions(file: IO[bytes], path: Path) -> tuple[set[str], set[str]]:
    """Read the complete lines, and cut off an incomplete line at the end.

    Returns:
        The paths with an answer, and the paths with an error and no answer.
    """
    answered: set[str] = set()
    failed: set[str] = set()
    complete_bytes = 0
    for number, line in enumerate(file.read().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break
        try:
            picture, is_error = _read_line(line)
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{path}: line {number} is not a caption; expected JSON with a path. Name another "
                "file, or repair this one."
            ) from None
        (failed if is_error else answered).add(picture)
        complete_bytes += len(line)
    os.ftruncate(file.fileno(), complete_bytes)
    file.seek(complete_bytes)
    return answered, failed - answered


def _read_line(line: bytes) -> tuple[str, bool]:
    """Return the path of a caption's line, and whether the line has an error."""
    fields = json.loads(line)
    return str(fields["path"]), "error" in fields
