"""Many pictures, one question: JSON lines, a picture each, safe against whatever ends the run.

A line is written and flushed when its picture is done, so a run that ends in any way, kill -9
included, leaves whole lines and at most one begun; `resume` cuts that off and goes on behind it.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from fastvlm_onnx.errors import FastVLMError, InputError
from fastvlm_onnx.runtime.answering.results import Generation
from fastvlm_onnx.runtime.vision.image_encoder import ImageFeatures, PixelValues

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from fastvlm_onnx.runtime.model import FastVLM

# What a folder is searched for; a file that is named itself is taken whatever it is called.
SUFFIXES: Final = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Caption:
    """What came of one picture.

    Attributes:
        path: as it was given or found.
        generation: None where `error` says why there is none.
    """

    path: str
    generation: Generation | None
    error: str | None

    def to_json(self) -> str:
        """One line."""
        fields: dict[str, Any] = {"path": self.path}
        if self.generation is None:
            fields["error"] = self.error
        else:
            timings = self.generation.timings
            seconds = timings.preprocess + timings.vision + timings.prefill + timings.decode
            fields["text"] = self.generation.text
            fields["finish_reason"] = self.generation.finish_reason
            fields["seconds"] = round(seconds, 3)
        line = json.dumps(fields, ensure_ascii=False)
        # A file's name may be no UTF-8; escaped, it comes back as it was.
        return line if _is_utf8(line) else json.dumps(fields)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def find_pictures(given: Iterable[str]) -> list[str]:
    """Files as they are named, folders with what lies in them at any depth, patterns with matches.

    Returns:
        Paths in order, each once.

    Raises:
        InputError: a name is nothing of these, or nothing was found.
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
    """Ask the same about each picture, some at once; the next ones are decoded meanwhile.

    A picture that cannot be read is an error of its own, and so is one that is gone by now.

    Args:
        options: as `FastVLM.generate_batch` takes them.

    Yields:
        In the order of `paths`.
    """
    orient = bool(options.get("orient", False))
    batches = [paths[i : i + batch_size] for i in range(0, len(paths), batch_size)]

    encoder = model.image_encoder

    def read(path: str) -> PixelValues | ImageFeatures | FastVLMError:
        try:
            return encoder.read(path, orient=orient)
        except FastVLMError as error:
            return error

    with ThreadPoolExecutor(1) as pool:
        # One batch ahead: pixel_values of a large folder would not fit in memory.
        waiting = [pool.submit(read, path) for path in batches[0]]
        for number, batch in enumerate(batches):
            images = [future.result() for future in waiting]
            following = batches[number + 1] if number + 1 < len(batches) else ()
            waiting = [pool.submit(read, path) for path in following]
            good = [image for image in images if not isinstance(image, FastVLMError)]
            features = [encoder.encode(image) for image in good]
            answers = iter(model.generate_batch(features, prompt, **options) if good else [])
            for path, image in zip(batch, images, strict=True):
                if isinstance(image, FastVLMError):
                    yield Caption(path, None, str(image))
                else:
                    yield Caption(path, next(answers), None)


class CaptionFile:
    """The file of captions, held by this run alone.

    Attributes:
        done: paths that were in it when it was opened.
    """

    def __init__(self, file: IO[bytes], done: set[str]) -> None:
        self._file, self.done = file, done

    def write(self, line: str) -> None:
        """Append a line, whole or not at all.

        Raises:
            InputError: it cannot be written; the lines before it are safe.
        """
        end = self._file.tell()
        content = memoryview(line.encode() + b"\n")
        try:
            while content:  # a disk that fills takes a part first
                content = content[self._file.write(content) :]
        except OSError as error:
            os.ftruncate(self._file.fileno(), end)
            raise InputError(
                f"{self._file.name}: cannot be written ({error.strerror}); what is there is whole: "
                "make room, then go on with --resume."
            ) from None


@contextmanager
def caption_file(path: Path, *, resume: bool) -> Iterator[CaptionFile]:
    """Open a file of captions, new or to go on with.

    Raises:
        InputError: it is there already, held by another run, no such file, or cannot be written.
    """
    try:
        file = path.open("r+b" if resume and path.exists() else "x+b", buffering=0)
    except FileExistsError:
        raise InputError(
            f"{path}: exists already; go on with it by --resume, or name another file."
        ) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}).") from None
    with file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(
                    f"{path}: another run is writing it; wait for that, or name another file."
                ) from None
        try:
            yield CaptionFile(file, _read_done(file, path))
        finally:
            # A run that ended before its first line leaves nothing to be in the way of the next.
            if os.fstat(file.fileno()).st_size == 0:
                path.unlink(missing_ok=True)


def _read_done(file: IO[bytes], path: Path) -> set[str]:
    """Paths in a file of captions; what is left of a line at its end is cut off."""
    done = set()
    whole = 0
    for number, line in enumerate(file.read().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break
        try:
            done.add(str(json.loads(line)["path"]))
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{path}: line {number} is no caption; expected JSON with a path. Name another "
                "file, or repair it."
            ) from None
        whole += len(line)
    os.ftruncate(file.fileno(), whole)
    file.seek(whole)
    return done
