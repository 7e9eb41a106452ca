"""The distances between two arrays that `verify` reports. Numpy only."""

import math

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
