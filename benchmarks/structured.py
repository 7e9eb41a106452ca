"""Time that structured answers take, against answers in free text of the same lengths.

    python benchmarks/structured.py DIR --precision fast       # about a minute for the 0.5B

A constrained and a free answer alternate, and a figure is the median of their ratios. The package
should have Qwen2's vocabulary, as one of Apple's checkpoints or of `real_language_model.py` has:
the built-in model's is 200 times smaller. Run it on an idle machine.
"""

import argparse
import time
from statistics import median
from typing import Any

import numpy as np

import fastvlm_onnx
from fastvlm_onnx import FastVLM, Generation
from fastvlm_onnx.runtime.engine.options import GenerationConfig
from fastvlm_onnx.runtime.engine.sampling import Sampler
from fastvlm_onnx.runtime.ort.hardware import processor
from fastvlm_onnx.samples import SAMPLE_PICTURE

PROMPT = "List the objects in the image."
STRUCTURES: dict[str, dict[str, Any]] = {
    "choices": {"choices": [f"The answer has number {number:03}." for number in range(200)]},
    "regex": {"regex": r"([A-Z][a-z]{2,9}( [a-z]{2,9}){4}\. ){3}"},
    "schema": {
        "schema": {
            "type": "object",
            "properties": {
                "scene": {"type": "string", "maxLength": 60},
                "objects": {
                    "type": "array",
                    "minItems": 3,
                    "maxItems": 3,
                    "items": {
                        "type": "object",
                        "properties": {
                            "name": {"type": "string", "maxLength": 12},
                            "count": {"type": "integer", "minimum": 1, "maximum": 99},
                            "color": {"enum": ["red", "green", "blue", "other"]},
                        },
                        "required": ["name", "count", "color"],
                        "additionalProperties": False,
                    },
                },
            },
            "required": ["scene", "objects"],
            "additionalProperties": False,
        }
    },
}


def preparation(model: FastVLM) -> dict[str, float]:
    """Measure the seconds until the first mask: of the first grammar, and of each once more."""
    constraints = model.components().constraints
    seconds = {}
    for name, structure in {"first": STRUCTURES["choices"], **STRUCTURES}.items():
        options: dict[str, Any] = dict(structure)
        if name == "choices":
            options = {"choices": [*structure["choices"], "One more."]}  # another grammar
        begin = time.perf_counter()
        constraints.check(GenerationConfig(**options))
        seconds[name] = time.perf_counter() - begin
    return seconds


def step_seconds(answer: Generation) -> float:
    """Seconds of a decoded token, its draw included."""
    return 1 / answer.timings.tokens_per_second


def ratios(model: FastVLM, structure: dict[str, Any], rounds: int) -> tuple[int, float, float]:
    """Compare answers.

    Returns:
        Tokens of the answer; seconds of a token in free text; ratio of a constrained one's.
    """
    features = model.encode_image(SAMPLE_PICTURE)
    constrained, free = [], []
    tokens = 0
    for _ in range(rounds + 1):
        answer = model.generate(features, PROMPT, **structure)
        tokens = len(answer.token_ids)
        other = model.generate(features, PROMPT, max_new_tokens=tokens, ignore_eos=True)
        constrained.append(step_seconds(answer))
        free.append(step_seconds(other))
    pairs = zip(constrained[1:], free[1:], strict=True)
    return tokens, median(free[1:]), median(a / b for a, b in pairs)


def draw_seconds(model: FastVLM, structure: dict[str, Any], temperature: float) -> float:
    """Seconds that the constraint adds to the draw of a token, on random logits."""
    vocab_size = model.manifest.decoder.vocab_size
    end = set(model.manifest.decoder.eos_token_ids)
    logits = np.random.default_rng(0).standard_normal((64, vocab_size)).astype(np.float32)
    free = Sampler(GenerationConfig(temperature=temperature, seed=0))
    config = GenerationConfig(temperature=temperature, seed=0, **structure)
    constraint = model.components().constraints.new_constraint(config)
    assert constraint is not None
    sampler = Sampler(config, constraint)
    added = []
    for row in logits:
        begin = time.perf_counter()
        token_id = sampler(row)
        middle = time.perf_counter()
        free(row)
        added.append(2 * middle - begin - time.perf_counter())
        if token_id in end or constraint.is_complete:
            break
    return median(added)


def forced_seconds(model: FastVLM, count: int, rounds: int) -> tuple[float, float]:
    """Seconds of `count` known tokens: run together, and run one by one."""
    language = model.language_model
    tokens = model.template.tokenizer.encode('{"name":"color count name red"}')[:count]
    together, apart = [], []
    for _ in range(rounds + 1):
        cache = language.new_cache(400)
        language.prefill(language.embed([[1] * 280]), cache)
        begin = time.perf_counter()
        language.prefill(language.embed([tokens]), cache)
        together.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        for token in tokens:
            language.decode_one_step(token, cache)
        apart.append(time.perf_counter() - begin)
    return median(together[1:]), median(apart[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--precision")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    model = fastvlm_onnx.load(given.folder, precision=given.precision, providers="cpu")
    print(f"{processor()}, {model.precision}, vocabulary {model.manifest.decoder.vocab_size}")
    for name, seconds in preparation(model).items():
        print(f"until the first mask, {name}: {seconds * 1e3:.1f} ms")
    for name, structure in STRUCTURES.items():
        tokens, free, ratio = ratios(model, structure, given.rounds)
        greedy, drawn = (draw_seconds(model, structure, t) for t in (0.0, 1.0))
        print(
            f"{name}: {tokens} tokens, free {free * 1e3:.2f} ms a token, constrained x "
            f"{ratio:.3f}; the draw takes {greedy * 1e3:+.2f} ms, "
            f"at temperature 1 {drawn * 1e3:+.2f} ms"
        )
    for count in (2, 3, 4, 6):
        together, apart = forced_seconds(model, count, given.rounds)
        print(
            f"{count} known tokens: together {together * 1e3:.1f} ms, one by one "
            f"{apart * 1e3:.1f} ms"
        )


if __name__ == "__main__":
    main()
