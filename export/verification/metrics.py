"""The distances between two arrays that `verify` and the benchmarks report. Numpy only."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]


def relative_error(found: FloatArray, expected: FloatArray) -> float | None:
    """Return ‖found - expected‖ / ‖expected‖, or None if it is not finite."""
    if np.array_equal(found, expected):
        return 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        difference = found - expected
    norm = math.sqrt(_dot(expected, expected))
    return _finite(math.sqrt(_dot(difference, difference)) / norm) if norm else None


def cosine(found: FloatArray, expected: FloatArray) -> float | None:
    """Return the cosine of the angle between two arrays; 1 if both are zero, None if not finite."""
    norms = math.sqrt(_dot(found, found) * _dot(expected, expected))
    if norms == 0.0:
        return 1.0 if np.array_equal(found, expected) else None
    return _finite(_dot(found, expected) / norms)


def kl_divergences(found: FloatArray, expected: FloatArray) -> NDArray[np.float64]:
    """Return the KL divergence of softmax(found) from softmax(expected) for each row.

    Args:
        found: logits, float32 [rows, vocab_size].
        expected: logits, float32 [rows, vocab_size].

    Returns:
        Divergences in nats, float64 [rows].
    """
    divergences = np.empty(len(expected))
    # All rows of a full vocabulary would take hundreds of megabytes in float64.
    for i, (found_row, expected_row) in enumerate(zip(found, expected, strict=True)):
        p, q = _log_softmax(expected_row), _log_softmax(found_row)
        with np.errstate(invalid="ignore"):
            divergences[i] = np.exp(p) @ (p - q)
    # For equal distributions, rounding can give a value slightly below zero.
    return np.maximum(divergences, 0)


@dataclass(frozen=True)
class DivergenceSummary:
    """KL divergences of many steps, in nats. All are None if a divergence is not finite.

    Attributes:
        mean: the mean over all steps.
        percentile_99: the 99th percentile, interpolated between two steps.
        largest: the largest divergence of a step.
    """

    mean: float | None
    percentile_99: float | None
    largest: float | None


def summarise_divergences(divergences: NDArray[np.float64]) -> DivergenceSummary:
    """Summarise the divergences of at least one step, float64 [steps]."""
    if not np.isfinite(divergences).all():
        return DivergenceSummary(None, None, None)
    return DivergenceSummary(
        mean=math.fsum(divergences) / len(divergences),
        percentile_99=float(np.quantile(divergences, 0.99)),
        largest=float(divergences.max()),
    )


def same_first_choices(found: FloatArray, expected: FloatArray) -> NDArray[np.bool_]:
    """Return for each row of logits whether the largest is that of the same token.

    Args:
        found: logits, float32 [rows, vocab_size].
        expected: logits, float32 [rows, vocab_size].

    Returns:
        bool [rows].
    """
    same: NDArray[np.bool_] = found.argmax(-1) == expected.argmax(-1)
    return same


def log_probabilities(logits: FloatArray, token_ids: Sequence[int]) -> NDArray[np.float64]:
    """Return the log-probability of one token for each row.

    Args:
        logits: float32 [rows, vocab_size].
        token_ids: the token of each row.

    Returns:
        Natural logarithms, float64 [rows].
    """
    rows = zip(logits, token_ids, strict=True)
    return np.array([_log_softmax(row)[token_id] for row, token_id in rows])


def perplexity(log_probs: NDArray[np.float64]) -> float | None:
    """Return exp of the negative mean of log-probabilities; None if it is not finite."""
    with np.errstate(over="ignore"):
        return _finite(float(np.exp(-log_probs.mean())))


def top_2_gap(logits: FloatArray) -> FloatArray:
    """Return the largest logit minus the second largest for each row."""
    second, first = np.partition(logits, -2, axis=-1)[:, -2:].T
    gap: FloatArray = first - second
    return gap


def _log_softmax(logits: FloatArray) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", over="ignore"):
        shifted = logits.astype(np.float64) - logits.max()
        result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result


def _dot(a: FloatArray, b: FloatArray) -> float:
    """Return the sum of products, accumulated in float64."""
    with np.errstate(invalid="ignore", over="ignore"):
        return float(np.einsum("i,i", a.ravel(), b.ravel(), dtype=np.float64))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
