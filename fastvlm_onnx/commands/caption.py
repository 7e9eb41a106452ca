"""`fastvlm-onnx caption`."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fastvlm_onnx.commands.default_package import package_or_default
from fastvlm_onnx.commands.generation_options import generation_options
from fastvlm_onnx.commands.load_options import LoadOptions, load_options
from fastvlm_onnx.commands.progress import progress_bar
from fastvlm_onnx.commands.prompt_options import prompt_options
from fastvlm_onnx.errors import InputError

if TYPE_CHECKING:
    from fastvlm_onnx.runtime.captions.caption import Caption
    from fastvlm_onnx.runtime.captions.destination import Destination
    from fastvlm_onnx.runtime.captions.prompts import PromptTemplate
    from fastvlm_onnx.runtime.engine.options import GenerationOptions


@click.command()
@click.argument("paths", nargs=-1, required=True)
@prompt_options
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="File: .csv, .parquet, or JSON lines; stdout by default.",
)
@click.option("--txt", is_flag=True, help="Write a text file beside each picture: a.txt for a.png.")
@click.option("--resume", is_flag=True, help="Leave out the pictures that an earlier run answered.")
@click.option("--shard", metavar="I/N", help="Take part I of N parts of the pictures; from 1/N.")
@click.option("--model", help="An exported folder, or the hub id of a package.")
@load_options
@click.option("--batch-size", default=4, show_default=True, help="Pictures answered at once.")
@generation_options(
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "seed",
    "stop",
    "max_time",
    "orient",
    "schema",
    "regex",
    "choices",
)
def caption(
    paths: tuple[str, ...],
    prompt: "str | PromptTemplate",
    output: Path | None,
    txt: bool,
    resume: bool,
    shard: str | None,
    model: str | None,
    options: LoadOptions,
    batch_size: int,
    generation: "GenerationOptions",
) -> None:
    """Ask the same question about many pictures, and write an answer for each.

    PATHS are files, folders, patterns, or `-` for file names on standard input, one in a line. A
    picture that cannot be read gives an `error`, and the exit code is then 3. --resume tries such
    pictures again.
    """
    from fastvlm_onnx.runtime.captions.asking import caption as caption_each
    from fastvlm_onnx.runtime.captions.pictures import Shard, find_pictures

    if batch_size < 1:
        raise InputError(f"--batch-size is {batch_size}; expected 1 or more.")
    if txt and output is not None:
        raise InputError("found --txt and -o; expected only one of them.")
    if resume and output is None and not txt:
        raise InputError("--resume needs -o FILE, the file of the earlier run, or --txt.")
    part = None if shard is None else Shard.parse(shard)
    found = find_pictures(_names(paths))
    if part is not None:
        total = len(found)
        found = [path for path in found if part.holds(path)]
        if not found:
            click.echo(f"shard {shard} has none of the {total} pictures", err=True)
            return
    with _destination(found, output, txt, resume) as destination:
        asked = destination.pending(found)  # those that could not be read are tried again
        if asked:
            options.register_libraries()
            loaded = options.load(package_or_default(model))
            destination.drop_errors(asked)
            began = time.perf_counter()
            with progress_bar("caption", " pictures") as update:
                update("reading", 0, len(asked))
                captions = caption_each(loaded, asked, prompt, batch_size=batch_size, **generation)
                for number, result in enumerate(captions, 1):
                    destination.write(result)
                    update(Path(result.path).name, number, len(asked))
            seconds = time.perf_counter() - began
    failed, held = len(destination.failed), len(destination.failed) + len(destination.answered)
    if asked:
        click.echo(
            f"pictures: {len(asked)} in {seconds:.1f} s, {len(asked) / seconds:.3g} a second; "
            f"{len(found) - len(asked)} were answered before",
            err=True,
        )
    else:
        click.echo(f"{output or 'text files'}: every picture is there already", err=True)
    if failed:
        click.echo(f"{failed} of {held} pictures could not be read", err=True)
        sys.exit(3)


def _destination(
    pictures: list[str], output: Path | None, txt: bool, resume: bool
) -> "AbstractContextManager[Destination]":
    if output is not None:
        from fastvlm_onnx.runtime.captions.destination import caption_file

        return caption_file(output, resume=resume)
    return _text_files(pictures, resume) if txt else _standard_output()


@contextmanager
def _text_files(pictures: list[str], resume: bool) -> "Iterator[Destination]":
    from fastvlm_onnx.runtime.captions.text_files import TextFiles

    files = TextFiles(pictures, resume=resume)
    yield files
    for error in files.errors:
        click.echo(f"error: {error}", err=True)


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
        click.echo(caption.to_json())
        sys.stdout.flush()
        (self.answered if caption.error is None else self.failed).add(caption.path)

    def close(self) -> None:
        pass

    finish = close


def _names(paths: tuple[str, ...]) -> list[str]:
    names: list[str] = []
    for path in paths:
        if path == "-":
            # Read as bytes, because a file's name may be invalid UTF-8.
            content = sys.stdin.buffer.read() if sys.stdin else b""
            names += [os.fsdecode(line) for line in content.splitlines() if line.strip()]
        else:
            names.append(path)
    return names
