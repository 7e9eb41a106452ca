"""The place that `fastvlm-onnx caption` writes to."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fastvlm_onnx.console import encodable_json, say

if TYPE_CHECKING:
    from fastvlm_onnx.runtime.captions.caption import Caption
    from fastvlm_onnx.runtime.captions.destination import Destination


def caption_output(
    pictures: list[str], output: str | None, *, txt: bool, resume: bool
) -> "AbstractContextManager[Destination]":
    """Open the place that the user names: a file, text files, or stdout.

    Args:
        pictures: paths of all pictures.
        output: the file.
        txt: write a text file beside each picture.
        resume: add to the output of an earlier run.

    Raises:
        InputError: the output exists without `resume`, or cannot be written.
    """
    if output is not None:
        from fastvlm_onnx.runtime.captions.destination import caption_file

        return caption_file(Path(output), resume=resume)
    return _text_files(pictures, resume) if txt else _standard_output()


@contextmanager
def _text_files(pictures: list[str], resume: bool) -> "Iterator[Destination]":
    from fastvlm_onnx.runtime.captions.text_files import TextFiles

    files = TextFiles(pictures, resume=resume)
    yield files
    for error in files.errors:
        say(f"error: {error}")


@contextmanager
def _standard_output() -> "Iterator[Destination]":
    yield _StandardOutput()


class _StandardOutput:
    """A line of JSON on stdout for each caption."""

    def __init__(self) -> None:
        self.answered: set[str] = set()
        self.failed: set[str] = set()

    def pending(self, paths: Iterable[str]) -> list[str]:
        return list(paths)

    def drop_errors(self, paths: Iterable[str]) -> None:
        pass

    def write(self, caption: "Caption") -> None:
        click.echo(encodable_json(caption.to_json()))
        sys.stdout.flush()
        (self.answered if caption.error is None else self.failed).add(caption.path)

    def close(self) -> None:
        pass

    finish = close
