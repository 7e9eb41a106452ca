"""The commands. Each imports its side only when it runs, so `--help` costs nothing.

Answers go to stdout and nothing else does. Exit codes: 0 done, 1 our fault, 2 the caller's,
130 interrupted.
"""

import json
import shlex
import sys
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import click

import fastvlm_onnx
from fastvlm_onnx.agreement import Agreement, VariantAgreement, agreement_table
from fastvlm_onnx.errors import FastVLMError, InputError
from fastvlm_onnx.locations import default_model, demo_package, remember_export


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `fastvlm-onnx`; `arguments` are the process's own when None."""
    # What Pillow warns of, a very large picture, is either read or refused in our own words.
    warnings.simplefilter("ignore")
    debug = "--debug" in sys.argv
    try:
        cli(arguments, prog_name="fastvlm-onnx", standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        click.echo(f"error: {error.format_message()} {_where_to_read(error)}", err=True)
        sys.exit(2)
    except FastVLMError as error:
        if debug:
            traceback.print_exc()
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our stdout left; closing it again at exit must not complain.
        sys.stdout = None
        sys.exit(1)


def _where_to_read(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"See `{context.command_path if context else 'fastvlm-onnx'} --help`."


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(fastvlm_onnx.__version__, message="%(version)s")
@click.option("--debug", is_flag=True, help="Show a traceback with every error.")
def cli(debug: bool) -> None:
    """Apple's FastVLM in ONNX Runtime: export a checkpoint, ask about pictures."""


# --- download ----------------------------------------------------------------------------------


@cli.command()
@click.argument("size", metavar="0.5b|1.5b|7b")
@click.option("--stage", default=3, show_default=True, help="Of Apple's training: 2 or 3.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to make.")
@click.option("--base-url", hidden=True)
def download(size: str, stage: int, output: Path | None, base_url: str | None) -> None:
    """Download one of Apple's checkpoints, for research only.

    A download that was cut goes on where it stopped when the command is given again.
    """
    try:
        from fastvlm_onnx.export.download import (
            APPLE_BASE_URL,
            checkpoint_name,
            download_checkpoint,
            is_whole_checkpoint,
        )
    except ImportError as error:
        raise InputError(
            f"downloading needs packages that are not installed ({error.name}); "
            'run `pip install "fastvlm-onnx[export]"`.'
        ) from None
    name = checkpoint_name(size, stage)
    folder = output or Path(name)
    if is_whole_checkpoint(folder):
        click.echo(f"{folder} is there already and whole", err=True)
    else:
        with _progress_bar("download", _megabytes()) as progress:
            download_checkpoint(
                size, stage, folder, base_url=base_url or APPLE_BASE_URL, progress=progress
            )
        click.echo(f"wrote {folder}", err=True)
    click.echo(f"next: fastvlm-onnx export {shlex.quote(str(folder))}", err=True)


# --- export ------------------------------------------------------------------------------------


@cli.command()
@click.argument("checkpoint", default="demo")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to make.")
@click.option("--precision", default="fp32", show_default=True, help="Variants, with commas.")
@click.option("--image-size", help="Pixels, with commas; the first is the default.")
@click.option("--base", help="The checkpoint under CHECKPOINT, if that is a LoRA adapter.")
@click.option("--allow-nonfinite", is_flag=True, help="Export NaN and infinite weights too.")
@click.option("--overwrite", is_flag=True, help="Replace a package that is there already.")
@click.option("--verify", is_flag=True, help="Measure it, as `fastvlm-onnx verify` does.")
def export(
    checkpoint: str,
    output: Path | None,
    precision: str,
    image_size: str | None,
    base: str | None,
    allow_nonfinite: bool,
    overwrite: bool,
    verify: bool,
) -> None:
    """Export CHECKPOINT to ONNX graphs.

    CHECKPOINT is a folder or zip in Apple's or transformers' layout, a LoRA adapter over --base, a
    Hugging Face id such as apple/FastVLM-0.5B, `0.5b`, `1.5b` or `7b` for Apple's own, or `demo`
    for the built-in model.
    """
    folder = output or Path(f"{Path(checkpoint).resolve().name.removesuffix('.zip')}-onnx")
    measured = _export(
        checkpoint,
        folder,
        verify,
        precisions=precision.split(","),
        image_sizes=None if image_size is None else _numbers(image_size, "--image-size"),
        base=base,
        allow_nonfinite=allow_nonfinite,
        overwrite=overwrite,
    )
    click.echo(f"wrote {folder}", err=True)
    _exit_if_outside(Agreement(measured))
    remember_export(folder.absolute())


def _export(
    checkpoint: str, folder: Path, verify: bool = False, **options: Any
) -> dict[str, VariantAgreement]:
    try:
        from fastvlm_onnx.export.pipeline import export_package
    except ImportError as error:
        raise InputError(
            f"exporting needs packages that are not installed ({error.name}); "
            'run `pip install "fastvlm-onnx[export]"`.'
        ) from None
    verify_package = _import_verify_package() if verify else None
    with ExitStack() as stack:
        progress = stack.enter_context(_progress_bar("export", _megabytes()))

        def measure(folder: Path, opened: Any) -> Agreement:
            stack.close()  # the export's bar is done
            assert verify_package is not None
            with _progress_bar("verify", _count) as verifying:
                return verify_package(folder, opened, progress=verifying)

        manifest = export_package(
            checkpoint,
            folder,
            progress=progress,
            verify=measure if verify else None,
            **options,
        )
    return manifest.measured


def _megabytes() -> Callable[[int, int], str]:
    """Bytes in words, with the rate of the last seconds and the time left."""
    seen: deque[tuple[float, int]] = deque()

    def words(done: int, total: int) -> str:
        now = time.monotonic()
        if seen and done < seen[-1][1]:  # another stage
            seen.clear()
        seen.append((now, done))
        while seen[0][0] < now - 10:
            seen.popleft()
        text = f"{done / 1e6:,.1f} of {total / 1e6:,.1f} MB"
        seconds, rate_bytes = now - seen[0][0], done - seen[0][1]
        if seconds < 1 or not rate_bytes:
            return text
        minutes, left = divmod(round((total - done) * seconds / rate_bytes), 60)
        return f"{text}, {rate_bytes / seconds / 1e6:,.1f} MB/s, {minutes}:{left:02} left"

    return words


def _count(done: int, total: int) -> str:
    return f"{done} of {total}"


@contextmanager
def _progress_bar(
    label: str, amount: Callable[[int, int], str]
) -> Iterator[Callable[[str, int, int], None]]:
    """A bar with the stage's name and how much is done, on stderr if that is a terminal."""
    shown = ""
    bar: Any = None
    with ExitStack() as stack:

        def update(stage: str, done: int, total: int) -> None:
            nonlocal shown, bar
            shown = f"{stage}, {amount(done, total)}"
            if bar and (bar.length != total or done < bar.pos):  # another stage, on its own line
                stack.close()
                bar = None
            # Not before there is something to show: a refused export prints one line.
            bar = bar or stack.enter_context(
                click.progressbar(
                    length=total,
                    label=label,
                    file=sys.stderr,
                    item_show_func=lambda _: shown,
                    show_eta=False,
                    width=0,  # what the terminal has left
                    hidden=not sys.stderr.isatty(),
                )
            )
            bar.update(done - bar.pos, current_item=stage)

        yield update


def _numbers(text: str, option: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} is {text!r}; expected numbers separated by commas.") from None


# --- verify ------------------------------------------------------------------------------------


@cli.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("checkpoint")
@click.option("--base", help="The checkpoint under CHECKPOINT, if that is a LoRA adapter.")
@click.option("--picture", "pictures", multiple=True, help="May be repeated.")
@click.option("--prompt", "prompts", multiple=True, help="May be repeated; asked of each picture.")
@click.option("--steps", default=32, show_default=True, help="Tokens of each answer, at most.")
@click.option("--precision", help="Variants, with commas; all by default.")
@click.option("--image-size", type=int, help="One the package was exported for.")
@click.option("--threads", type=int, help="One per physical core by default.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of the table.")
def verify(
    folder: Path,
    checkpoint: str,
    base: str | None,
    pictures: tuple[str, ...],
    prompts: tuple[str, ...],
    steps: int,
    precision: str | None,
    image_size: int | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Compare the package DIR with PyTorch running CHECKPOINT, stage by stage.

    Pictures and prompts are the built-in samples by default. Exits with 1 if a figure is outside
    the tolerance of its precision, which the table states.

    PyTorch holds the whole model in float32, four bytes a parameter, and twice that while it
    loads: 0.5B takes 6 GB, 7B 62 GB.
    """
    verify_package = _import_verify_package()
    with _progress_bar("verify", _count) as progress:
        agreement = verify_package(
            folder,
            checkpoint,
            base=base,
            pictures=pictures,
            prompts=prompts,
            steps=steps,
            precisions=precision.split(",") if precision else None,
            image_size=image_size,
            threads=threads,
            progress=progress,
        )
    found = {"outside_tolerance": agreement.outside, **asdict(agreement)}
    click.echo(
        json.dumps(found, ensure_ascii=False) if as_json else agreement_table(agreement.variants)
    )
    _exit_if_outside(agreement)


def _import_verify_package() -> Callable[..., Agreement]:
    try:
        from fastvlm_onnx.export.verify import verify_package
    except ImportError as error:
        raise InputError(
            f"verifying needs packages that are not installed ({error.name}); "
            'run `pip install "fastvlm-onnx[verify]"`.'
        ) from None
    return verify_package


def _exit_if_outside(agreement: Agreement) -> None:
    if agreement.outside:
        click.echo(f"outside tolerance: {'; '.join(agreement.outside)}", err=True)
        sys.exit(1)


# --- generate ----------------------------------------------------------------------------------


@cli.command()
@click.argument("image")
@click.argument("prompt")
@click.option("--model", type=click.Path(path_type=Path), help="An exported folder.")
@click.option("--precision", help="A variant of the package; its first by default.")
@click.option("--provider", default="auto", show_default=True, help="auto, cpu, cuda or coreml.")
@click.option("--max-new-tokens", default=256, show_default=True)
@click.option("--temperature", default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-k", default=50, show_default=True, help="0 is off.")
@click.option("--top-p", default=1.0, show_default=True)
@click.option("--seed", type=int, help="Repeat a drawn answer.")
@click.option("--image-size", type=int, help="One the package was exported for.")
@click.option("--orient", is_flag=True, help="Turn the picture as its EXIF data say.")
@click.option("--threads", type=int, help="Per graph; one per physical core by default.")
@click.option("--stats", is_flag=True, help="Where the time went, on stderr.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of the text.")
def generate(
    image: str,
    prompt: str,
    model: Path | None,
    precision: str | None,
    provider: str,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int | None,
    image_size: int | None,
    orient: bool,
    threads: int | None,
    stats: bool,
    as_json: bool,
) -> None:
    """Ask PROMPT about IMAGE; the answer streams to stdout.

    IMAGE is a file, or `-` for standard input.
    """
    picture = _standard_input() if image == "-" else image
    loaded = fastvlm_onnx.load(
        model or _default_model(),
        precision=precision,
        provider=provider,
        image_size=image_size,
        threads=threads,
    )
    pieces = loaded.stream(
        picture,
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        orient=orient,
    )
    generation = None
    for piece in pieces:
        if not as_json:
            click.echo(piece.text, nl=False)
            sys.stdout.flush()
        generation = piece.generation
    assert generation is not None
    click.echo(json.dumps(asdict(generation), ensure_ascii=False) if as_json else "")
    if stats:
        timings = generation.timings
        click.echo(
            f"load {timings.load:.3f} s, preprocess {timings.preprocess:.3f} s, "
            f"vision {timings.vision:.3f} s, prefill {timings.prefill:.3f} s "
            f"({generation.prompt_tokens} tokens), first token {timings.first_token:.3f} s, "
            f"decode {timings.decode:.3f} s ({len(generation.token_ids)} tokens, "
            f"{timings.tokens_per_second:.1f} a second), finish_reason {generation.finish_reason}",
            err=True,
        )


def _standard_input() -> bytes:
    # A process started without standard input has None there.
    content = b"" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer.read()
    if not content:
        raise InputError("standard input holds no picture; pipe one in, or give a file's path.")
    return content


def _default_model() -> Path:
    chosen = default_model()
    folder = chosen.folder or demo_package(fastvlm_onnx.__version__)
    click.echo(f"model: {folder} ({chosen.reason})", err=True)
    if chosen.folder is None:
        _export_demo_once(folder)
    return folder


def _export_demo_once(folder: Path) -> None:
    if not folder.is_dir():
        _export("demo", folder)


# --- demo --------------------------------------------------------------------------------------


@cli.command()
@click.option("--model", type=click.Path(path_type=Path), help="Another exported folder.")
def demo(model: Path | None) -> None:
    """Ask the built-in model about its sample pictures."""
    folder = model or demo_package(fastvlm_onnx.__version__)
    if model is None:
        _export_demo_once(folder)
    loaded = fastvlm_onnx.load(folder)
    samples = resources.files("fastvlm_onnx") / "demo" / "pictures"
    questions = json.loads((samples / "questions.json").read_text("utf-8"))
    for picture, answers in questions.items():
        click.echo(picture)
        content = (samples / picture).read_bytes()
        for prompt in answers:
            click.echo(f"  {prompt}  {loaded.generate(content, prompt).text}")
