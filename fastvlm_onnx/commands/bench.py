"""`fastvlm-onnx bench`."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastvlm_onnx.commands.load_options import list_option, parse_numbers
from fastvlm_onnx.commands.progress import progress_bar
from fastvlm_onnx.errors import InputError
from fastvlm_onnx.samples import SAMPLE_PICTURE

if TYPE_CHECKING:
    from fastvlm_onnx.package import Manifest
    from fastvlm_onnx.runtime.bench import Case, Figures


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@list_option(
    "--precision",
    help="Variants to compare, with commas, or `all`; by default the best for the provider.",
)
@list_option(
    "--image-size", help="Sizes to compare, with commas, or `all`; by default the package's."
)
@list_option("--threads", help="Numbers to compare, with commas; by default the physical cores.")
@click.option(
    "--provider",
    "providers",
    multiple=True,
    default=("auto",),
    show_default=True,
    help="A provider, as for `generate`; may be repeated to compare.",
)
@click.option("--picture", type=click.Path(path_type=Path), help="By default a sample picture.")
@click.option("--prompt", default="Describe the image.", show_default=True)
@click.option("--warmup", default=1, show_default=True, help="Answers before the measurement.")
@click.option("--repeats", default=5, show_default=True, help="Answers that are measured.")
@click.option("--new-tokens", default=64, show_default=True, help="Length of each answer.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def bench(
    folder: Path,
    precision: str | None,
    image_size: str | None,
    threads: str | None,
    providers: tuple[str, ...],
    picture: Path | None,
    prompt: str,
    warmup: int,
    repeats: int,
    new_tokens: int,
    as_json: bool,
) -> None:
    """Measure the package DIR on this machine.

    Each row is measured in a process of its own. A row that cannot be measured shows the reason,
    and the exit code is then 1.
    """
    from fastvlm_onnx.package import read_manifest
    from fastvlm_onnx.runtime.bench import Case
    from fastvlm_onnx.runtime.vision.image import read_picture

    for option, value, least in (
        ("--warmup", warmup, 0),
        ("--repeats", repeats, 1),
        ("--new-tokens", new_tokens, 2),
    ):
        if value < least:
            raise InputError(f"{option} is {value}; expected {least} or more.")
    image = picture or SAMPLE_PICTURE
    read_picture(image)
    cases = [
        Case(
            str(folder),
            name,
            size,
            number,
            provider,
            str(image),
            prompt,
            warmup,
            repeats,
            new_tokens,
        )
        for provider in providers
        for name, size in _variants(read_manifest(folder), folder, precision, image_size, provider)
        for number in (parse_numbers(threads, "--threads") if threads else [None])
    ]
    measured = _measure_all(cases)
    click.echo(_as_json(measured) if as_json else _table(measured))
    if any(isinstance(found, str) for _, found in measured):
        sys.exit(1)


def _variants(
    manifest: "Manifest",
    folder: Path,
    precision: str | None,
    image_size: str | None,
    provider: str,
) -> list[tuple[str, int]]:
    from fastvlm_onnx.runtime.loading import choose_image_size, choose_variant
    from fastvlm_onnx.runtime.ort.provider_selection import parse_providers

    names: Sequence[str | None] = [None]
    if precision:
        names = list(manifest.variants) if precision == "all" else precision.split(",")
    pairs = []
    asked = parse_providers(provider)
    for name in (choose_variant(manifest, name, folder, asked) for name in names):
        sizes: Sequence[int | None] = [None]
        if image_size == "all":
            sizes = sorted(map(int, manifest.variants[name].vision_encoder))
        elif image_size:
            sizes = parse_numbers(image_size, "--image-size")
        pairs += [(name, choose_image_size(manifest, name, size, folder)) for size in sizes]
    return pairs


# --- measuring ---------------------------------------------------------------------------------


def _measure_all(cases: Sequence["Case"]) -> list[tuple["Case", "Figures | str"]]:
    """Measure each case.

    Returns:
        Each case with its figures, or with the reason that it cannot be measured.
    """
    total = sum(case.warmup + case.repeats for case in cases)
    found: list[tuple[Case, Figures | str]] = []
    with progress_bar("bench", " answers") as update:
        done = 0
        for case in cases:
            stage = f"{case.precision}, {case.image_size} pixels"

            def answered(stage: str = stage) -> None:
                nonlocal done
                done += 1
                update(stage, done, total)

            found.append((case, _measure(case, answered)))
    return found


def _measure(case: "Case", answered: Callable[[], None]) -> "Figures | str":
    from fastvlm_onnx.runtime.bench import Figures

    command = [sys.executable, "-m", "fastvlm_onnx.runtime.bench", json.dumps(asdict(case))]
    # stderr goes to a file, because a full pipe without a reader would stop the process.
    with (
        tempfile.TemporaryFile("w+", errors="replace") as messages,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=messages, text=True) as process,
    ):
        assert process.stdout is not None
        for text in process.stdout:
            line = json.loads(text)
            if "figures" in line:
                return Figures.from_json(line["figures"])
            if "error" in line:
                return str(line["error"])
            answered()
        process.wait()
        messages.seek(0)
        last_lines = messages.read().strip().splitlines()
    if process.returncode < 0:  # usually for lack of memory
        return f"killed by signal {-process.returncode}"
    return last_lines[-1] if last_lines else f"exit code {process.returncode}"


def _int8_weights(measured: "Iterable[Figures]") -> str:
    """Say how int8 weights were read; empty if no variant has int8 weights."""
    if not (read := {found.int8_weights for found in measured} - {None}):
        return ""
    if "uint8" in read:
        return " int8 weights: rewritten as uint8, because this processor saturates int8 products."
    return " int8 weights: as they are, because this processor's int8 products are exact."


# --- the report ------------------------------------------------------------------------


def _conditions(case: "Case") -> dict[str, Any]:
    from fastvlm_onnx.runtime.ort.hardware import cores, processor
    from fastvlm_onnx.runtime.ort.providers import import_onnxruntime

    return {
        "processor": processor(),
        "cores": cores(),
        "onnxruntime": import_onnxruntime().__version__,
        "warmup": case.warmup,
        "repeats": case.repeats,
    }


def _as_json(measured: "list[tuple[Case, Figures | str]]") -> str:
    rows = []
    for case, found in measured:
        row = {
            "precision": case.precision,
            "image_size": case.image_size,
            "threads": case.threads,
            "providers": case.providers,
        }
        rows.append(row | ({"error": found} if isinstance(found, str) else asdict(found)))
    return json.dumps(_conditions(measured[0][0]) | {"cases": rows}, ensure_ascii=False)


# Heading of a column -> field of an answer, factor, format.
COLUMNS = {
    "preprocess ms": ("preprocess", 1e3, "{:.1f}"),
    "vision ms": ("vision", 1e3, "{:.1f}"),
    "prefill ms": ("prefill", 1e3, "{:.1f}"),
    "first token ms": ("first_token", 1e3, "{:.1f}"),
    "ms/token": ("decode_one_token", 1e3, "{:.2f}"),
    "outside %": ("outside", 100, "{:.1f}"),
}


def _table(measured: "list[tuple[Case, Figures | str]]") -> str:
    """Return a Markdown table of medians, with the least values in brackets."""
    identity = ["variant", "pixels", "threads", "provider"]
    header = [*identity, "load s", *COLUMNS, "tokens/s", "peak RSS MB"]
    rows = [header, ["---"] * len(header)]
    tokens = []
    for case, found in measured:
        threads = str(case.threads or "all")
        cells = [case.precision, str(case.image_size), threads, case.providers]
        if isinstance(found, str):
            rows.append(
                [*cells, found.replace("|", "/"), *[""] * (len(header) - len(identity) - 1)]
            )
            continue
        tokens.append(
            f"{found.prompt_tokens} of prompt and {found.new_tokens} of answer "
            f"at {case.image_size} pixels"
        )
        cells.append(f"{found.load:.2f}")
        for field, factor, form in COLUMNS.values():
            median, least = (
                form.format(factor * value) for value in (found.median(field), found.least(field))
            )
            cells.append(f"{median} ({least})")
        peak = found.peak_rss_bytes
        cells.append(f"{found.median('tokens_per_second'):.1f}")
        cells.append("unknown" if peak is None else f"{peak / 1e6:.0f}")
        rows.append(cells)
    given = _conditions(measured[0][0])
    return "\n".join(
        [
            f"{given['processor']}, {given['cores']} cores, onnxruntime {given['onnxruntime']}. "
            f"Medians, the least in brackets, of {given['repeats']} answers after "
            f"{given['warmup']} to warm up. First token: from the picture file on. Outside: share "
            "of a token's time that is not ONNX Runtime's. "
            f"Tokens: {', '.join(dict.fromkeys(tokens)) or 'unknown'}."
            + _int8_weights(found for _, found in measured if not isinstance(found, str)),
            "",
            *("| " + " | ".join(row) + " |" for row in rows),
        ]
    )
