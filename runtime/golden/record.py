"""Record the values of a package for its golden.json."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from fastvlm_onnx.errors import ProviderError
from fastvlm_onnx.golden import (
    Golden,
    GoldenAnswer,
    GoldenFeatures,
    GoldenLogit,
    GoldenLogits,
    GoldenTolerance,
    GoldenVariant,
)
from fastvlm_onnx.package import Manifest
from fastvlm_onnx.runtime.arrays import FloatArray
from fastvlm_onnx.runtime.golden.describe import describe_inputs
from fastvlm_onnx.runtime.golden.inputs import built_in_inputs
from fastvlm_onnx.runtime.golden.run import AnswerRun, VariantRun, run_variant
from fastvlm_onnx.runtime.ort.hardware import available_memory_bytes, physical_memory_bytes
from fastvlm_onnx.runtime.ort.providers import import_onnxruntime
from fastvlm_onnx.variants import VARIANTS, variants_without_cpu

SAMPLES: Final = 16  # of image_features
TOP_LOGITS: Final = 5
# Estimates. ONNX Runtime packs most weights into a copy. The activations of the vision encoder and
# of the prompt grow with the image.
MEMORY_PER_WEIGHTS_BYTE: Final = 2.5
MEMORY_PER_PIXEL: Final = 1500  # bytes


class NotFiniteError(Exception):
    """A value is NaN or infinite, which JSON cannot hold."""


def record_golden(folder: Path, manifest: Manifest, *, runs_graphs: bool = True) -> Golden:
    """Return the content of a package's golden.json.

    Values of a variant are missing, with the reason, where the CPU or the installed ONNX Runtime
    cannot run it, where memory is short, and where a value is not finite.

    Args:
        folder: the package's folder.
        manifest: the package's manifest.
        runs_graphs: record the values of variants too. Pixels and token ids take 0.1 seconds.

    Raises:
        PackageError: a file is missing, cut or altered.
    """
    inputs, size = built_in_inputs(), manifest.image.default_size
    golden = describe_inputs(folder, manifest, inputs)
    variants, missing = {}, dict(golden.missing)
    for name in manifest.variants:
        reason = _hindrance(manifest, name) if runs_graphs else "the export was told not to run it"
        if reason is None:
            try:
                run = run_variant(folder, name, size, golden.conversations, inputs)
                variants[name] = describe_variant(run, size, VARIANTS[name].golden_tolerance)
            except (ProviderError, NotFiniteError) as error:
                reason = str(error).replace(str(folder), "the package")
        if reason is not None:
            missing[name] = reason
    return replace(golden, variants=variants, missing=missing)


def _hindrance(manifest: Manifest, variant: str) -> str | None:
    """Return why a variant is not run here; None where it is."""
    if variant in variants_without_cpu():
        return "the CPU cannot run it"
    size = manifest.image.default_size
    weights = sum(manifest.files[file].bytes for file in manifest.files_of(variant, size))
    needed = int(weights * MEMORY_PER_WEIGHTS_BYTE + size * size * MEMORY_PER_PIXEL)
    available = available_memory_bytes() or physical_memory_bytes()
    if available is not None and available < needed:
        return f"it may need {needed / 1e9:.1f} GB of memory; {available / 1e9:.1f} GB were free"
    return None


def describe_variant(run: VariantRun, image_size: int, tolerance: GoldenTolerance) -> GoldenVariant:
    """Return the values of a variant's arrays.

    Args:
        run: the arrays.
        image_size: side of the square input in pixels.
        tolerance: the largest differences of a right port.

    Raises:
        NotFiniteError: a value is not finite.
    """
    return GoldenVariant(
        image_size,
        import_onnxruntime().__version__,
        tolerance,
        {name: describe_features(array) for name, array in run.features.items()},
        {
            name: [describe_answer(answer, tolerance) for answer in answers]
            for name, answers in run.answers.items()
        },
    )


def describe_features(array: FloatArray) -> GoldenFeatures:
    """Return the values of image_features, float32 [1, num_image_tokens, hidden_size].

    Raises:
        NotFiniteError: a value is not finite.
    """
    flat = array.reshape(-1)
    at = [i * (flat.size - 1) // (SAMPLES - 1) for i in range(SAMPLES)]
    return GoldenFeatures(
        list(array.shape),
        _rounded(flat.mean(dtype=np.float64)),
        _rounded(flat.std(dtype=np.float64)),
        [_rounded(flat[i]) for i in at],
    )


def describe_answer(answer: AnswerRun, tolerance: GoldenTolerance) -> GoldenAnswer:
    """Return the values of an answer.

    Raises:
        NotFiniteError: a logit is not finite.
    """
    generation, steps = answer.generation, answer.steps
    # Both of the two largest logits may be off by the tolerance.
    is_certain = [_lead(logits) > 2 * tolerance.logits * logits.std() for logits in steps]
    certain = is_certain.index(False) if False in is_certain else len(steps)
    compared = min(certain, len(generation.token_ids))
    # The context of this step holds certain tokens alone.
    last = min(compared, len(steps) - 1)
    return GoldenAnswer(
        [_describe_logits(steps, step) for step in dict.fromkeys((0, last))],
        generation.token_ids,
        generation.text,
        generation.finish_reason,
        compared_tokens=compared,
        compares_text=certain == len(steps),
    )


def _lead(logits: FloatArray) -> float:
    """Return the largest logit less the second largest."""
    second, first = np.partition(logits, -2)[-2:]
    return float(first - second)


def _describe_logits(steps: Sequence[FloatArray], step: int) -> GoldenLogits:
    logits = steps[step]
    top = np.argsort(-logits, kind="stable")[:TOP_LOGITS]
    return GoldenLogits(
        step,
        _rounded(logits.std(dtype=np.float64)),
        [GoldenLogit(int(i), _rounded(logits[i])) for i in top],
    )


def _rounded(value: float) -> float:
    """Return a value with the digits that a float32 has."""
    if not np.isfinite(value):
        raise NotFiniteError("image features or logits are not finite")
    return float(f"{value:.7g}")
