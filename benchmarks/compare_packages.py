"""Prompt and token times of two packages, whose answers take turns in one process.

    python benchmarks/compare_packages.py BEFORE AFTER --precision fast
    python benchmarks/compare_packages.py DIR DIR --precision int4,int8     # two variants of one

Each round asks both packages in random order, so that a slow moment of the machine falls on both.
The ratio of a round is the second package's time by the first's. Printed are the medians of the
ratios with an interval that holds the true median in 95 of 100 cases, and the medians of the times.
Images are random features, so no vision encoder runs. Run it on an idle machine.
"""

import argparse
import math
import random
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

import fastvlm_onnx
from fastvlm_onnx.runtime.ort.hardware import processor

PROMPT = "Describe the image."
STAGES = ("prefill", "decode")


def measure(
    models: Sequence[fastvlm_onnx.FastVLM], rounds: int, new_tokens: int
) -> dict[str, list[tuple[float, float]]]:
    """Ask both models in each round.

    Returns:
        By stage, the seconds of both models in each round.
    """
    rng = np.random.default_rng(0)
    sizes = models[0].language_model.sizes
    shape = (1, models[0].num_image_tokens, sizes.hidden_size)
    features = rng.standard_normal(shape, np.float32) * np.float32(0.02)
    found: dict[str, list[tuple[float, float]]] = {stage: [] for stage in STAGES}
    for number in range(rounds + 1):
        seconds: dict[int, dict[str, float]] = {}
        for i in random.Random(number).sample((0, 1), 2):
            timings = (
                models[i]
                .generate(features, PROMPT, max_new_tokens=new_tokens, ignore_eos=True)
                .timings
            )
            seconds[i] = {stage: getattr(timings, stage) for stage in STAGES}
        if number:  # the first round warms up
            for stage in STAGES:
                found[stage].append((seconds[0][stage], seconds[1][stage]))
    return found


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the median, from the binomial distribution of ranks."""
    ordered, count = sorted(values), len(values)
    rank, below = 0, 0.5**count
    while below + math.comb(count, rank + 1) * 0.5**count <= 0.025:
        rank += 1
        below += math.comb(count, rank) * 0.5**count
    return ordered[rank], ordered[-1 - rank]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packages", type=Path, nargs=2, metavar="DIR")
    parser.add_argument("--precision", default="fast", help="a variant, or one for each package")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--new-tokens", type=int, default=25)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.rounds < 6 or args.new_tokens < 2:
        parser.error("--rounds must be 6 or more, and --new-tokens 2 or more")
    names = args.precision.split(",")
    models = [
        fastvlm_onnx.load(
            folder, precision=name, providers="cpu", threads=args.threads, lazy_vision=True
        )
        for folder, name in zip(args.packages, names * 2, strict=False)
    ]
    found = measure(models, args.rounds, args.new_tokens)
    print(
        f"{processor()}, {args.threads} threads, ONNX Runtime {onnxruntime.__version__}; "
        f"{args.rounds} rounds"
    )
    for stage, pairs in found.items():
        steps = args.new_tokens - 1 if stage == "decode" else 1
        first, second = (
            statistics.median(times) * 1e3 / steps for times in zip(*pairs, strict=True)
        )
        ratios = [after / before for before, after in pairs]
        low, high = median_interval(ratios)
        unit = "ms a token" if stage == "decode" else "ms"
        print(
            f"{stage}: {first:.2f} and {second:.2f} {unit}; "
            f"ratio {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})"
        )


if __name__ == "__main__":
    main()
