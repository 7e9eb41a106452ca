"""Compare two arrays, and return the rows of an agreement's tables.

The models that computed the arrays are not known here. Numpy only.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fastvlm_onnx.agreement import PromptAgreement, StageAgreement
from fastvlm_onnx.export.verification.metrics import (
    cosine,
    relative_error,
    same_first_choices,
    summarise_divergences,
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
    picture: str,
    prompt: str,
    found: FloatArray,
    expected: FloatArray,
    divergences: NDArray[np.float64],
) -> PromptAgreement:
    """Compare the logits along one answer, which both sides were fed.

    Args:
        picture: file name of the picture.
        prompt: the user's prompt.
        found: the package's logits, float32 [steps, vocab_size].
        expected: the reference's logits, float32 [steps, vocab_size].
        divergences: the KL divergence of each step, float64 [steps].
    """
    differs = ~same_first_choices(found, expected)
    gaps = top_2_gap(expected)
    ties = gaps < TIE * np.abs(expected).max(-1)
    first = int(differs.argmax()) if differs.any() else None
    divergence = summarise_divergences(divergences)
    return PromptAgreement(
        picture=picture,
        prompt=prompt,
        steps=len(differs),
        agreeing_steps=int((~differs).sum()),
        tied_steps=int((differs & ties).sum()),
        kl_divergence=divergence.mean,
        max_kl_divergence=divergence.largest,
        first_difference=None if first is None else first + 1,
        reference_gap=None if first is None else float(gaps[first]),
    )
