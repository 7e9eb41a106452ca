"""Time of the vision encoder by image size, and of prefill by prompt length.

    python benchmarks/scaling.py -o docs/benchmarks             # about 15 minutes
    python benchmarks/scaling.py -o /tmp/scaling --package DIR  # your own package

The weights are random, of the 0.5B's size. Figures are medians of --repeats runs after one run to
warm up. Run it on an idle machine. It writes a table, the figures as JSON, and two plots.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from peers import plot
from random_checkpoint import PUBLISHED, write_random_checkpoint

import fastvlm_onnx
from fastvlm_onnx.export.pipeline import export_package
from fastvlm_onnx.package import read_manifest
from fastvlm_onnx.runtime.ort.hardware import processor

IMAGE_SIZES = (256, 512, 768, 1024, 1280, 1536)
PROMPT_LENGTHS = (32, 64, 128, 256, 512, 1024, 2048)
PRECISIONS = ("fp32", "int8", "int4", "fast")

Figures = dict[str, dict[int, float]]
"""Variant -> image size or prompt length -> seconds."""


def seconds_of(run: Callable[[], object], repeats: int) -> float:
    """Return the median of `repeats` runs, in seconds, after one run to warm up."""
    run()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def measure(package: Path, threads: int, repeats: int) -> tuple[Figures, Figures]:
    """Measure vision by image size and prefill by prompt length, for every variant of a package.

    Variants that share a vision encoder have one entry, under the first variant's name.
    """
    rng = np.random.default_rng(0)
    manifest = read_manifest(package)
    vision: Figures = {}
    prefill: Figures = {}
    encoders = [variant.vision_encoder for variant in manifest.variants.values()]
    for number, (precision, variant) in enumerate(manifest.variants.items()):
        is_new = variant.vision_encoder not in encoders[:number]
        for size in sorted(map(int, variant.vision_encoder)) if is_new else ():
            model = fastvlm_onnx.load(
                package, precision=precision, image_size=size, threads=threads, providers="cpu"
            )
            pixel_values = rng.random((1, 3, size, size), np.float32)
            seconds = seconds_of(
                lambda m=model, p=pixel_values: m.image_encoder.encode_pixel_values(p), repeats
            )
            vision.setdefault(precision, {})[size] = seconds
            print(f"{precision}: {size} pixels, {seconds:.3f} s", flush=True)
        model = fastvlm_onnx.load(package, precision=precision, threads=threads, providers="cpu")
        for length in PROMPT_LENGTHS:
            embeds = rng.standard_normal((1, length, manifest.decoder.hidden_size), np.float32)
            seconds = seconds_of(
                lambda m=model.language_model, e=0.02 * embeds: next(
                    m.teacher_forced_logits(e, [0])
                ),
                repeats,
            )
            prefill.setdefault(precision, {})[length] = seconds
            print(f"{precision}: {length} positions, {seconds:.3f} s", flush=True)
    return vision, prefill


def table(heading: str, figures: Figures) -> str:
    """Return a Markdown table of milliseconds, with a row for each variant."""
    columns = list(next(iter(figures.values())))
    lines = [
        f"| {heading} | " + " | ".join(map(str, columns)) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name, by_column in figures.items():
        cells = [f"{by_column[column] * 1e3:.0f}" for column in columns]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--package", type=Path, help="an exported folder instead of random weights")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        package = args.package
        if package is None:
            checkpoint, package = Path(folder) / "checkpoint", Path(folder) / "package"
            write_random_checkpoint(checkpoint, PUBLISHED["0.5b"])
            export_package(checkpoint, package, precisions=PRECISIONS, image_sizes=IMAGE_SIZES)
        vision, prefill = measure(package, args.threads, args.repeats)
    machine = f"{processor()}, {os.cpu_count()} cores, {args.threads} threads"
    text = f"""# Cost by image size and by prompt length

{machine}; medians of {args.repeats} runs, in milliseconds.

{table("vision encoder and projector, by pixels", vision)}

{table("prefill, by positions", prefill)}
"""
    (args.output / "scaling.md").write_text(text, encoding="utf-8")
    (args.output / "scaling.json").write_text(
        json.dumps({"machine": machine, "vision": vision, "prefill": prefill}, indent=2) + "\n"
    )
    for name, figures, axis in (
        ("image-size", vision, "pixels"),
        ("prompt-length", prefill, "positions"),
    ):
        title = f"milliseconds by {axis}: {machine}"
        plot.draw_lines(title, axis, figures, args.output / f"scaling.{name}.svg")
    print(text)


if __name__ == "__main__":
    main()
