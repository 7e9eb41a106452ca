"""`fastvlm-onnx caption`."""

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fastvlm_onnx.commands.default_package import package_or_default
from fastvlm_onnx.commands.generation_options import generation_options
from fastvlm_onnx.commands.load_options import LoadOptions, load_options
from fastvlm_onnx.commands.progress import progress_bar
from fastvlm_onnx.errors import InputError

if TYPE_CHECKING:
    from fastvlm_onnx.runtime.captions import CaptionFile
    from fastvlm_onnx.runtime.engine.options import GenerationOptions


@click.command()
@click.argument("paths", nargs=-1, required=True)
@click.option("--prompt", default="Describe the image.", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File; stdout by default.")
@click.option("--resume", is_flag=True, help="Append to the file of an earlier run.")
@click.option("--model", help="An exported folder, or the hub id of a package.")
@load_options
@click.option("--batch-size", default=4, show_default=True, help="Pictures answered at once.")
@generation_options("max_new_tokens", "orient", "schema", "regex", "choices")
def caption(
    paths: tuple[str, ...],
    prompt: str,
    output: Path | None,
    resume: bool,
    model: str | None,
    options: LoadOptions,
    batch_size: int,
    generation: "GenerationOptions",
) -> None:
    """Ask the same question about many pictures, and write a line of JSON for each.

    PATHS are files, folders, patterns, or `-` for file names on standard input, one in a line. A
    picture that cannot be read gives a line with an `error`, and the exit code is then 3. --resume
    tries such pictures again.
    """
    from fastvlm_onnx.runtime.captions import caption as caption_each
    from fastvlm_onnx.runtime.captions import caption_file, find_pictures
    from fastvlm_onnx.runtime.text.prompt import check_prompt

    check_prompt(prompt)
    if batch_size < 1:
        raise InputError(f"--batch-size is {batch_size}; expected 1 or more.")
    if resume and output is None:
        raise InputError("--resume needs -o FILE, the file of the earlier run.")
    found = find_pictures(_names(paths))
    with ExitStack() as stack:
        file: CaptionFile | None = None
        if output is not None:
            file = stack.enter_context(caption_file(output, resume=resume))
            # Pictures that could not be read are tried again.
            found = [path for path in found if path not in file.answered]
            if not found:
                click.echo(f"{output}: every picture is there already", err=True)
                _exit_if_unreadable(len(file.failed), len(file.answered) + len(file.failed))
                return
        options.register_libraries()
        loaded = options.load(package_or_default(model))
        if file is not None:
            file.drop_errors(found)
        update = stack.enter_context(progress_bar("caption", " pictures"))
        unreadable = 0
        update("reading", 0, len(found))
        captions = caption_each(loaded, found, prompt, batch_size=batch_size, **generation)
        for number, result in enumerate(captions, 1):
            unreadable += result.error is not None
            if file is None:
                click.echo(result.to_json())
                sys.stdout.flush()
            else:
                file.write(result)
            update(Path(result.path).name, number, len(found))
    if file is None:
        _exit_if_unreadable(unreadable, len(found))
    else:
        _exit_if_unreadable(len(file.failed), len(file.answered) + len(file.failed))


def _exit_if_unreadable(unreadable: int, total: int) -> None:
    if unreadable:
        click.echo(f"{unreadable} of {total} pictures could not be read", err=True)
        sys.exit(3)


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
