"""Compare two arrays, and return the rows of an agreement's tables.

The models that computed the arrays are not known here. Numpy only.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fastvlm_onnx.agreement import PromptAgreement, StageAgreement
from fastvlm_onnx.export.verification.metrics import (
    cosine,
    kl_divergences,
    relative_error,
    top_2_gap,
)

FloatArray = NDArray[np.float32]

# After some tens of layers, float32 does not resolve a gap below this share of the largest logit:
# either token is right.
TIE: Final = 1e-4


def compare_stage(stage: str, found: FloatArray, expected: FloatArray) -> StageAgreement:
    """Compare two arrays of the same shape."""
    return StageAgreement(stage, relative_error(found, expected), cosine(found, expected))


def worst_of(rows: Sequence[StageAgreement]) -> StageAgreement:
    """Return the worst figures of several rows of one stage."""
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
    """Compare the logits along one answer, which both sides were fed.

    Args:
        picture: file name of the picture.
        prompt: the user's prompt.
        found: the package's logits, float32 [steps, vocab_size].
        expected: the reference's logits, float32 [steps, vocab_size].
    """
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
