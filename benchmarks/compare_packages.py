"""Prompt and token times of two packages, whose answers take turns in one process.

    python benchmarks/compare_packages.py BEFORE AFTER --precision fast
    python benchmarks/compare_packages.py DIR DIR --precision int4,int8     # two variants of one
    python benchmarks/compare_packages.py BEFORE AFTER --texts 24           # a real language model

Each round asks both packages in random order, so that a slow moment of the machine falls on both.
The ratio of a round is the second package's time by the first's. Printed are the medians of the
ratios with an interval that holds the true median in 95 of 100 cases, and the medians of the times.
Images are random features, so no vision encoder runs. With --texts, a round answers that many
prompts of quality/prompts.json, greedily: how often `fast` runs its second pass depends on the
text, and random weights have few clear choices. Run it on an idle machine.
"""

import argparse
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from quality.prompts import Prompt, read_prompts, tokenize

import fastvlm_onnx
from fastvlm_onnx import FastVLM, FastVLMError, InputError
from fastvlm_onnx.runtime.ort.hardware import processor

PROMPT = "Describe the image."
STAGES = ("prefill", "decode")

Seconds = dict[str, float]
"""By stage: the seconds of a prompt, and of a token."""


def answer_features(model: FastVLM, new_tokens: int) -> Seconds:
    """Answer one prompt about random image features."""
    shape = (1, model.num_image_tokens, model.language_model.sizes.hidden_size)
    features = np.random.default_rng(0).standard_normal(shape, np.float32) * np.float32(0.02)
    answer = model.generate(features, PROMPT, max_new_tokens=new_tokens, ignore_eos=True)
    timings = answer.timings
    return {"prefill": timings.prefill, "decode": timings.decode / (new_tokens - 1)}


def answer_texts(model: FastVLM, prompts: Sequence[Prompt], new_tokens: int) -> Seconds:
    """Answer each prompt up to its end token; times are means over all prompts and tokens.

    Raises:
        InputError: no answer has a second token.
    """
    language_model = model.language_model
    prefill, decode, steps = 0.0, 0.0, 0
    for prompt in prompts:
        inputs = language_model.embed([part for part in tokenize(model, prompt) if part])
        cache = language_model.new_cache(inputs.shape[1] + new_tokens)
        start = time.perf_counter()
        token = int(language_model.prefill(inputs, cache, is_greedy=True).argmax())
        first = time.perf_counter()
        for _ in range(new_tokens - 1):
            if token in language_model.sizes.eos_token_ids:
                break
            token = int(language_model.decode_one_step(token, cache, is_greedy=True).argmax())
            steps += 1
        prefill += first - start
        decode += time.perf_counter() - first
    if not steps:
        raise InputError(
            "--texts: every answer ends at its first token; ask more or other prompts."
        )
    return {"prefill": prefill / len(prompts), "decode": decode / steps}


def measure(
    models: Sequence[FastVLM], rounds: int, answer: Callable[[FastVLM], Seconds]
) -> dict[str, list[tuple[float, float]]]:
    """Ask both models in each round.

    Returns:
        By stage, the seconds of both models in each round.
    """
    found: dict[str, list[tuple[float, float]]] = {stage: [] for stage in STAGES}
    for number in range(rounds + 1):
        order = random.Random(number).sample((0, 1), 2)
        seconds = {i: answer(models[i]) for i in order}
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
    parser.add_argument("--texts", type=int, help="answer texts, this number in each round")
    args = parser.parse_args()
    if args.rounds < 6 or args.new_tokens < 2:
        parser.error("--rounds must be 6 or more, and --new-tokens 2 or more")
    prompts = read_prompts(args.texts)
    names = args.precision.split(",")
    models = [
        fastvlm_onnx.load(
            folder, precision=name, providers="cpu", threads=args.threads, lazy_vision=True
        )
        for folder, name in zip(args.packages, names * 2, strict=False)
    ]
    if args.texts is None:
        found = measure(models, args.rounds, lambda model: answer_features(model, args.new_tokens))
    else:
        found = measure(
            models, args.rounds, lambda model: answer_texts(model, prompts, args.new_tokens)
        )
    print(
        f"{processor()}, {args.threads} threads, ONNX Runtime {onnxruntime.__version__}; "
        f"{args.rounds} rounds"
    )
    for stage, pairs in found.items():
        first, second = (statistics.median(times) * 1e3 for times in zip(*pairs, strict=True))
        ratios = [after / before for before, after in pairs]
        low, high = median_interval(ratios)
        unit = "ms a token" if stage == "decode" else "ms"
        print(
            f"{stage}: {first:.2f} and {second:.2f} {unit}; "
            f"ratio {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})"
        )


if __name__ == "__main__":
    try:
        main()
    except FastVLMError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
