"""Rows of an agreement's tables, from arrays, and what each precision may cost.

Neither what computed the arrays nor how is known here. Numpy only.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fastvlm_onnx.agreement import PromptAgreement, StageAgreement, Tolerance
from fastvlm_onnx.export.verification.metrics import (
    cosine,
    kl_divergences,
    relative_error,
    top_2_gap,
)

FloatArray = NDArray[np.float32]

TOLERANCES: Final[Mapping[str, Tolerance]] = {
    # Folding and fusing only reorder sums: 1e-6 on true sizes, and room for depth.
    "fp32": Tolerance(1e-4, cosine=0.99999, kl_divergence=1e-6, argmax_agreement=1.0),
    # From here on about twice what a random 0.5B with outlier tokens showed
    # (docs/benchmarks/quantisation-error.md), its logits being the hardest to keep in order: only
    # the share of equal tokens is one for trained weights, whose first choice stands out.
    # Weights rounded to 11 bits, sums in float32.
    "fp16": Tolerance(0.01, cosine=0.9999, kl_divergence=1e-4, argmax_agreement=0.99),
    # Weights and activations on 255 levels, and the errors of every layer add up.
    "int8": Tolerance(0.2, cosine=0.98, kl_divergence=0.02, argmax_agreement=0.9),
    # As int8 up to image_features; then weights on 16 levels.
    "int4": Tolerance(0.5, cosine=0.9, kl_divergence=0.15, argmax_agreement=0.8),
    # The prompt as int8, the answer as int4.
    "fast": Tolerance(0.4, cosine=0.92, kl_divergence=0.1, argmax_agreement=0.8),
    # Weights and products rounded to 8 bits of mantissa.
    "bf16": Tolerance(0.05, cosine=0.998, kl_divergence=0.005, argmax_agreement=0.95),
    # image_features as fp16; then as int4.
    "int4_cuda": Tolerance(0.5, cosine=0.9, kl_divergence=0.15, argmax_agreement=0.8),
    "coreml": Tolerance(0.5, cosine=0.9, kl_divergence=0.15, argmax_agreement=0.8),
}
# A gap below this share of the largest logit is one that float32 itself does not resolve after
# some tens of layers: either token is right.
TIE: Final = 1e-4


def compare_stage(stage: str, found: FloatArray, expected: FloatArray) -> StageAgreement:
    """One row, from two arrays of one shape."""
    return StageAgreement(stage, relative_error(found, expected), cosine(found, expected))


def worst_of(rows: Sequence[StageAgreement]) -> StageAgreement:
    """The row that stands for several of one stage."""
    errors = [row.relative_error for row in rows if row.relative_error is not None]
    cosines = [row.cosine for row in rows if row.cosine is not None]
    return StageAgreement(
        rows[0].stage,
        max(errors) if len(errors) == len(rows) else None,
        min(cosines) if len(cosines) == len(rows) else None,
    )


def compare_answers(
    picture: str, prompt: str, found: FloatArray, expected: FloatArray
) -> PromptAgreement:
    """One row, from logits float32 [steps, vocab_size] of an answer that both sides were fed."""
    differs = found.argmax(-1) != expected.argmax(-1)
    gaps = top_2_gap(expected)
    ties = gaps < TIE * np.abs(expected).max(-1)
    first = int(differs.argmax()) if differs.any() else None
    divergences = kl_divergences(found, expected)
    is_finite = bool(np.isfinite(divergences).all())
    return PromptAgreement(
        picture=picture,
        prompt=prompt,
        steps=len(differs),
        agreeing_steps=int((~differs).sum()),
        tied_steps=int((differs & ties).sum()),
        kl_divergence=math.fsum(divergences) / len(divergences) if is_finite else None,
        max_kl_divergence=float(divergences.max()) if is_finite else None,
        first_difference=None if first is None else first + 1,
        reference_gap=None if first is None else float(gaps[first]),
    )
