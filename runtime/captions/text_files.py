"""A text file beside each picture, as programs that train on pictures read them."""

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from fastvlm_onnx.errors import InputError
from fastvlm_onnx.runtime.captions.caption import Caption


class TextFiles:
    """Writes the answer about `a.png` to `a.txt`. A picture with an error gets no file.

    Attributes:
        answered: paths of pictures that have a file.
        failed: paths of pictures that this run could not read.
        errors: the reason for each of `failed`.
    """

    def __init__(self, pictures: Sequence[str], *, resume: bool) -> None:
        """Check that each picture has a file of its own.

        Args:
            pictures: paths of all pictures.
            resume: leave out the pictures that have a file; without it, a file is an error.

        Raises:
            InputError: a file exists already, or two pictures would share one.
        """
        taken: dict[str, str] = {}
        for picture in pictures:
            file = _text_file(picture)
            # Windows and macOS take names that differ in case alone for one name.
            key = str(file) if sys.platform == "linux" else str(file).casefold()
            if picture == str(file) or taken.setdefault(key, picture) != picture:
                raise InputError(
                    f"{taken.get(key, picture)} and {picture} would have the same file {file}; "
                    "rename a picture, or write with -o."
                )
        self.answered = {picture for picture in pictures if _text_file(picture).exists()}
        self.failed: set[str] = set()
        self.errors: list[str] = []
        if self.answered and not resume:
            first = _text_file(next(p for p in pictures if p in self.answered))
            raise InputError(
                f"{len(self.answered)} of {len(pictures)} pictures have a text file already "
                f"({first}); leave them out with --resume, or remove the files."
            )

    def pending(self, paths: Iterable[str]) -> list[str]:
        """Return the paths of pictures without a file."""
        return [path for path in paths if path not in self.answered]

    def drop_errors(self, paths: Iterable[str]) -> None:
        """Do nothing: errors are not kept."""

    def write(self, caption: Caption) -> None:
        """Write a picture's file, complete or not at all.

        Raises:
            InputError: the file cannot be written.
        """
        if caption.generation is None:
            self.failed.add(caption.path)
            self.errors.append(str(caption.error))
            return
        file = _text_file(caption.path)
        unfinished = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            unfinished.write_text(caption.generation.text + "\n", encoding="utf-8", newline="\n")
            unfinished.replace(file)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            raise InputError(
                f"{file}: cannot be written ({error.strerror}); make room or give the right to "
                "write there, then go on with --resume."
            ) from None
        self.answered.add(caption.path)

    def close(self) -> None:
        """Do nothing: each file is complete."""

    finish = close


def _text_file(picture: str) -> Path:
    return Path(picture).with_suffix(".txt")
