"""Ways to find the scales and zero points of int4, for a comparison. Numpy only."""

from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

# The values that a search tries: the integer of the largest value, and the share of the range.
LANDINGS = (-8.0, -7.6, -7.2, -8.4, -8.8, -6.8, -9.4, -6.4)
SHARES = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.76, 1.04)


@dataclass(frozen=True)
class Quantized:
    """Integers [n, block_size] in 0 .. 15, with scales and zero points [n, 1]."""

    integers: FloatArray
    scales: FloatArray
    zeros: FloatArray

    def values(self) -> FloatArray:
        return (self.integers - self.zeros) * self.scales


Quantise = Callable[[FloatArray], Quantized]


def around_8(blocks: FloatArray, landing: float = -8.0) -> Quantized:
    """Map the value of largest magnitude to 8 + landing, and round all others to nearest."""
    high, low = ends(blocks)
    peaks = np.where(high > -low, high, low)
    scales = np.where(peaks == 0, np.float32(1), peaks / np.float32(landing))
    return rounded(blocks, scales, np.full_like(scales, 8))


def with_zeros(blocks: FloatArray, share: float = 1.0) -> Quantized:
    """Spread sixteen values, one of which is 0, over a share of the range of a block."""
    high, low = ends(blocks)
    scales = np.where(high > low, (high - low) * np.float32(share / 15), np.float32(1))
    zeros = np.rint(np.float32(7.5) - (high + low) / (2 * scales))
    return rounded(blocks, scales, np.clip(zeros, 0, 15))


def ends(blocks: FloatArray) -> tuple[FloatArray, FloatArray]:
    high, low = blocks.max(axis=1, keepdims=True), blocks.min(axis=1, keepdims=True)
    return np.maximum(high, 0), np.minimum(low, 0)


def rounded(blocks: FloatArray, scales: FloatArray, zeros: FloatArray) -> Quantized:
    return Quantized(np.clip(np.rint(blocks / scales) + zeros, 0, 15), scales, zeros)


def best_around_8(blocks: FloatArray) -> Quantized:
    return best_of(blocks, (around_8(blocks, landing) for landing in LANDINGS))


def best_with_zeros(blocks: FloatArray) -> Quantized:
    return best_of(blocks, (with_zeros(blocks, share) for share in SHARES))


def best_of(blocks: FloatArray, trials: Iterable[Quantized]) -> Quantized:
    """Return the best trial of each block by squared error; least squares refines each scale."""
    best, best_gain = None, np.float32(-1)
    for trial in trials:
        levels = trial.integers - trial.zeros
        dot = (blocks * levels).sum(axis=1, keepdims=True)
        norm = np.maximum(np.square(levels).sum(axis=1, keepdims=True), 1)
        refined = Quantized(trial.integers, dot / norm, trial.zeros)
        gain = dot * dot / norm  # the reduction of the squared error
        if best is not None:
            pick = partial(np.where, gain > best_gain)
            pairs = zip(astuple(refined), astuple(best), strict=True)
            refined = Quantized(*(pick(new, old) for new, old in pairs))
        best, best_gain = refined, np.maximum(gain, best_gain)
    return best


WAYS: tuple[tuple[str, Quantise, bool], ...] = (
    ("nearest", around_8, False),
    ("searched", best_around_8, False),
    ("nearest, zero points", with_zeros, True),
    ("searched, zero points", best_with_zeros, True),
)
