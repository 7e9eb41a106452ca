"""`fastvlm-onnx caption`."""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

import fastvlm_onnx
from fastvlm_onnx.commands.model import model_folder
from fastvlm_onnx.commands.progress import count_with_rate, progress_bar
from fastvlm_onnx.commands.provider_options import provider_options, register
from fastvlm_onnx.errors import InputError

if TYPE_CHECKING:
    from fastvlm_onnx.runtime.captions import CaptionFile


@click.command()
@click.argument("paths", nargs=-1, required=True)
@click.option("--prompt", default="Describe the image.", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A file; stdout if none.")
@click.option("--resume", is_flag=True, help="Go on with a file that an earlier run left.")
@click.option("--model", type=click.Path(path_type=Path), help="An exported folder.")
@click.option("--precision", help="A variant of the package; what suits the provider by default.")
@provider_options
@click.option("--batch-size", default=4, show_default=True, help="Pictures decoded at once.")
@click.option("--max-new-tokens", default=256, show_default=True)
@click.option("--image-size", type=int, help="One the package was exported for.")
@click.option("--orient", is_flag=True, help="Turn the pictures as their EXIF data say.")
@click.option("--threads", type=int, help="Per graph; one per physical core by default.")
def caption(
    paths: tuple[str, ...],
    prompt: str,
    output: Path | None,
    resume: bool,
    model: Path | None,
    precision: str | None,
    providers: str,
    options: dict[str, str],
    libraries: dict[str, str],
    batch_size: int,
    max_new_tokens: int,
    image_size: int | None,
    orient: bool,
    threads: int | None,
) -> None:
    """Ask the same about many pictures; one line of JSON for each.

    PATHS are files, folders, patterns, or `-` for names on standard input, a line each. A picture
    that cannot be read is a line with an `error`; the exit code is 3 if there was any.
    """
    from fastvlm_onnx.runtime.captions import caption as caption_each
    from fastvlm_onnx.runtime.captions import caption_file, find_pictures
    from fastvlm_onnx.runtime.prompt import check_prompt

    check_prompt(prompt)
    if batch_size < 1:
        raise InputError(f"--batch-size is {batch_size}; expected 1 or more.")
    if resume and output is None:
        raise InputError("--resume wants the file that an earlier run left; name it with -o.")
    found = find_pictures(_names(paths))
    with ExitStack() as stack:
        file: CaptionFile | None = None
        if output is not None:
            file = stack.enter_context(caption_file(output, resume=resume))
            found = [path for path in found if path not in file.done]
            if not found:
                click.echo(f"{output}: every picture is there already", err=True)
                return
        register(libraries)
        loaded = fastvlm_onnx.load(
            model or model_folder(),
            precision=precision,
            providers=providers,
            provider_options=options,
            image_size=image_size,
            threads=threads,
        )
        update = stack.enter_context(progress_bar("caption", count_with_rate()))
        failed = 0
        update("reading", 0, len(found))
        captions = caption_each(
            loaded,
            found,
            prompt,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            orient=orient,
        )
        for number, one in enumerate(captions, 1):
            failed += one.error is not None
            if file is None:
                click.echo(one.to_json())
                sys.stdout.flush()
            else:
                file.write(one.to_json())
            update(Path(one.path).name, number, len(found))
    if failed:
        click.echo(f"{failed} of {len(found)} pictures could not be read", err=True)
        sys.exit(3)


def _names(paths: tuple[str, ...]) -> list[str]:
    names: list[str] = []
    for path in paths:
        if path == "-":
            lines = sys.stdin.read().splitlines() if sys.stdin else []
            names += [line for line in lines if line.strip()]
        else:
            names.append(path)
    return names
