"""`fastvlm-onnx caption`."""

import locale
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fastvlm_onnx.commands.caption_output import caption_output
from fastvlm_onnx.commands.default_package import package_or_default
from fastvlm_onnx.commands.generation_options import generation_options
from fastvlm_onnx.commands.load_options import LoadOptions, load_options
from fastvlm_onnx.commands.progress import progress_bar
from fastvlm_onnx.commands.prompt_options import prompt_options
from fastvlm_onnx.commands.ray_options import RayOptions, ray_options, run_on_ray
from fastvlm_onnx.console import say
from fastvlm_onnx.errors import InputError

if TYPE_CHECKING:
    from fastvlm_onnx.runtime.captions.prompts import PromptTemplate
    from fastvlm_onnx.runtime.engine.options import GenerationOptions


@click.command()
@click.argument("paths", nargs=-1)
@prompt_options
@click.option(
    "-o",
    "--output",
    metavar="DEST",
    help="File: .csv, .parquet, or else JSON lines; stdout by default.",
)
@click.option("--txt", is_flag=True, help="Write a text file beside each picture: a.txt for a.png.")
@click.option("--resume", is_flag=True, help="Leave out the pictures that an earlier run answered.")
@click.option("--shard", metavar="I/N", help="Take part I of N parts of the pictures; from 1/N.")
@click.option("--model", help="An exported folder, or the hub id of a package.")
@load_options
@ray_options
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
    output: str | None,
    txt: bool,
    resume: bool,
    shard: str | None,
    model: str | None,
    options: LoadOptions,
    cluster: RayOptions | None,
    batch_size: int,
    generation: "GenerationOptions",
) -> None:
    """Ask the same question about many pictures, and write an answer for each.

    PATHS are files, folders, patterns, or `-` for file names on standard input, one in a line. A
    picture that cannot be read gives an `error`, and the exit code is then 3. --resume tries such
    pictures again.

    With --ray, PATHS may also be tar files, parquet files and addresses such as s3://bucket/folder,
    and --resume does not try pictures with an error again.
    """
    from fastvlm_onnx.runtime.captions.asking import caption as caption_each
    from fastvlm_onnx.runtime.captions.pictures import Shard, find_pictures

    if not paths:
        raise click.MissingParameter(param_hint="'PATHS...'", param_type="argument")
    if batch_size < 1:
        raise InputError(f"--batch-size is {batch_size}; expected 1 or more.")
    if output is not None and not Path(output).name:
        raise InputError(f"-o is {output!r}; expected a file.")
    if txt and output is not None:
        raise InputError("found --txt and -o; expected only one of them.")
    if resume and output is None and not txt:
        raise InputError("--resume needs -o FILE, the file of the earlier run, or --txt.")
    part = None if shard is None else Shard.parse(shard)
    if cluster is not None:
        if txt or part:
            raise InputError(f"found {'--txt' if txt else '--shard'} and --ray; drop one of them.")
        counts = run_on_ray(
            cluster,
            _names(paths),
            output,
            prompt,
            resume=resume,
            model=model,
            options=options,
            batch_size=batch_size,
            generation=dict(generation),
        )
        say(f"{output}: {counts.total} pictures")
        _exit_if_unreadable(counts.failed, counts.total)
        return
    found = find_pictures(_names(paths))
    if part is not None:
        total = len(found)
        found = [path for path in found if part.holds(path)]
        if not found:
            say(f"shard {shard} has none of the {total} pictures")
            return
    with caption_output(found, output, txt=txt, resume=resume) as destination:
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
    held = len(destination.answered) + len(destination.failed)
    if asked:
        say(
            f"pictures: {len(asked)} in {seconds:.1f} s, {len(asked) / seconds:.3g} a second; "
            f"{len(found) - len(asked)} were answered before"
        )
    else:
        say(f"{output or 'text files'}: every picture is there already")
    _exit_if_unreadable(len(destination.failed), held)


def _exit_if_unreadable(unreadable: int, total: int) -> None:
    if unreadable:
        say(f"{unreadable} of {total} pictures could not be read")
        sys.exit(3)


def _names(paths: tuple[str, ...]) -> list[str]:
    names: list[str] = []
    for path in paths:
        if path == "-":
            # Read as bytes, because a file's name may be invalid UTF-8.
            content = sys.stdin.buffer.read() if sys.stdin else b""
            names += [_decoded(line) for line in content.splitlines() if line.strip()]
        else:
            names.append(path)
    return names


def _decoded(name: bytes) -> str:
    try:
        return os.fsdecode(name)
    except UnicodeDecodeError:  # Windows, whose `dir` writes names in the system's encoding
        return name.decode(locale.getencoding(), "replace")
