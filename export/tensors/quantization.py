"""Quantise float32 matrices [out, in] to 8 or 4 bits. Numpy only.

No calibration data is needed. For blocks of 4 bits several scales are tried, and the scale with the
smallest squared error is taken.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastvlm_onnx.export.tensors.lazy_array import FloatArray

Result = TypeVar("Result")

# The number of float32 values that a thread works on at a time. They fit in the processor's cache,
# and the time of a numpy call is small beside the time of the arithmetic.
PIECE_VALUES: Final = 262_144
# The number of consecutive values of a row that share a scale. Smaller blocks are closer to the
# float32 weights, larger blocks take fewer bytes; docs/quantisation.md has the figures.
INT4_BLOCK: Final = 128
INT8_BLOCK: Final = 128
# The sixteen int4 values are spread over these shares of a block's range. Clipping the ends of the
# range (below 1), or a wider range, can reduce the error of the other values. Least squares then
# refines the best scale.
INT4_SHARES: Final = (1.0, 0.96, 0.92, 0.88, 0.84, 1.04)


@dataclass(frozen=True)
class Blocks:
    """A matrix [out, in] in blocks along its rows, as com.microsoft.MatMulNBits reads it.

    Attributes:
        packed: the integers, uint8 [out, blocks, block_size * bits / 8]. With 4 bits, a byte holds
            two integers, the first in its lower half.
        scales: float32 [out, blocks].
        zero_points: the integers that represent zero, uint8 [out, ceil(blocks / 2)] with two in a
            byte; None with 8 bits, where 128 represents zero.
    """

    packed: NDArray[np.uint8]
    scales: FloatArray
    zero_points: NDArray[np.uint8] | None


def quantize_rows(weight: FloatArray) -> tuple[NDArray[np.int8], FloatArray]:
    """Quantise to int8 with a scale for each row.

    Args:
        weight: float32 [out, in].

    Returns:
        int8 [out, in] in -127 .. 127, and scales float32 [out]; a row of zeros has scale 1.
    """
    peaks = np.maximum(weight.max(axis=1, initial=0), -weight.min(axis=1, initial=0))
    scales = np.where(peaks > 0, peaks / np.float32(127), np.float32(1)).astype(np.float32)
    values = np.empty(weight.shape, np.int8)

    def fill(rows: slice) -> None:
        with np.errstate(divide="ignore", invalid="ignore"):
            scaled = weight[rows] / scales[rows, None]
        # In a row of denormal numbers a quotient can exceed 127.
        np.rint(np.clip(scaled, -127, 127), out=scaled)
        values[rows] = scaled

    _in_pieces(weight.shape, fill)
    return values, scales


def quantize_blocks(weight: FloatArray, block_size: int, bits: int = 4) -> Blocks:
    """Quantise with a scale for each block of a row and, in 4 bits, a zero point for each block.

    Args:
        weight: float32 [out, in]; the last block of a row is padded with zeros.
        block_size: the values in a block: 16, 32, 64, 128 or 256.
        bits: 4 or 8.
    """
    out_size, in_size = weight.shape
    blocks = -(-in_size // block_size)
    packed = np.empty((out_size, blocks, block_size * bits // 8), np.uint8)
    scales = np.empty((out_size, blocks), np.float32)
    zero_points = np.zeros((out_size, -(-blocks // 2)), np.uint8) if bits == 4 else None

    def fill(rows: slice) -> None:
        piece = weight[rows]
        if in_size % block_size:
            piece = np.pad(piece, ((0, 0), (0, blocks * block_size - in_size)))
        cut = np.ascontiguousarray(piece).reshape(-1, block_size)
        if zero_points is None:
            integers, found = _nearest_int8(cut)
            stored = (integers + np.float32(128)).astype(np.uint8)
        else:
            integers, found, zeros = search_int4(cut)
            stored = _pack_int4((integers + zeros).astype(np.uint8))
            zero_points[rows] = _pack_int4(zeros.astype(np.uint8).reshape(-1, blocks))
        packed[rows] = stored.reshape(-1, *packed.shape[1:])
        scales[rows] = found.reshape(-1, blocks)

    _in_pieces(weight.shape, fill)
    return Blocks(packed, scales, zero_points)


def pack_int4_blocks(
    integers: NDArray[np.int8], scales: FloatArray, zeros: NDArray[np.uint8], block_size: int
) -> Blocks:
    """Pack integers of 4 bits as MatMulNBits reads them.

    Args:
        integers: int8 [out, in]; an integer plus the zero point of its block is in 0 .. 15.
        scales: float32 [out, blocks].
        zeros: the zero points, uint8 [out, blocks].
        block_size: the values in a block.
    """
    out_size, in_size = integers.shape
    blocks = scales.shape[1]
    padded = np.pad(integers, ((0, 0), (0, blocks * block_size - in_size)))
    stored = padded.reshape(out_size, blocks, block_size) + zeros[..., None].astype(np.int8)
    packed = _pack_int4(stored.astype(np.uint8).reshape(-1, block_size))
    return Blocks(packed.reshape(out_size, blocks, block_size // 2), scales, _pack_int4(zeros))


def pack_int8_blocks(integers: NDArray[np.int8], scales: FloatArray, block_size: int) -> Blocks:
    """Pack integers of 8 bits as MatMulNBits reads them.

    Args:
        integers: int8 [out, in] in -127 .. 127.
        scales: float32 [out, blocks].
        block_size: the values in a block.
    """
    out_size, in_size = integers.shape
    blocks = scales.shape[1]
    padded = np.pad(integers, ((0, 0), (0, blocks * block_size - in_size)))
    # In 8 bits, an integer plus 128 is its two's complement with the first bit turned.
    packed = padded.view(np.uint8) ^ np.uint8(128)
    return Blocks(packed.reshape(out_size, blocks, block_size), scales, None)


def dequantize_blocks(blocks: Blocks, in_size: int) -> FloatArray:
    """Return the weight that MatMulNBits multiplies by, float32 [out, in_size]."""
    if blocks.zero_points is None:
        values = blocks.packed.astype(np.float32) - 128
    else:
        zeros = _unpack_int4(blocks.zero_points)[:, : blocks.scales.shape[1], None]
        values = _unpack_int4(blocks.packed).astype(np.float32) - zeros
    values *= blocks.scales[..., None]
    return values.reshape(len(values), -1)[:, :in_size]


def _pack_int4(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pack two values of 4 bits into a byte, the first into its lower half."""
    if values.shape[-1] % 2:
        values = np.pad(values, ((0, 0), (0, 1)))
    return values[:, 0::2] | values[:, 1::2] << np.uint8(4)


def _unpack_int4(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def _nearest_int8(blocks: FloatArray) -> tuple[FloatArray, FloatArray]:
    scales = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    scales[scales == 0] = 1
    return np.rint(np.clip(blocks / scales, -127, 127)), scales


def search_int4(
    blocks: FloatArray,
    importance: FloatArray | None = None,
    shares: Sequence[float] = INT4_SHARES,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Quantise blocks w [n, block_size] to 4 bits.

    For given integers q, the best scale is (w . q) / (q . q). Its squared error is
    w . w - (w . q)^2 / (q . q), so the trial with the largest quotient is the best. With an
    importance, both products are weighted by it.

    Args:
        blocks: float32 [n, block_size].
        importance: the weight of each column's squared error, float32 [block_size]; equal weights
            when None.
        shares: the shares of a block's range that are tried.

    Returns:
        Integers q [n, block_size], scales [n, 1] and zero points [n, 1]; an integer plus its zero
        point is in 0 .. 15.
    """
    # The range includes zero, so zero is represented exactly.
    lowest = np.minimum(blocks.min(axis=1, keepdims=True), 0)
    width = np.maximum(blocks.max(axis=1, keepdims=True), 0) - lowest
    width[width == 0] = 1
    best_gain = np.full((len(blocks), 1), -1, np.float32)
    best_inverse, best_zero, best_scale = (np.zeros_like(best_gain) for _ in range(3))
    integers = np.empty_like(blocks)
    smallest = np.float32(1) if importance is None else importance.min()

    def weighted(values: FloatArray) -> FloatArray:
        return values if importance is None else values * importance

    for share in shares:
        with np.errstate(over="ignore"):
            inverse = np.nan_to_num(np.float32(15 / share) / width, posinf=0)
        zero = np.rint(np.minimum(-lowest / width * np.float32(15), np.float32(15)))
        _round_int4(blocks, inverse, zero, integers)
        dot = np.einsum("ij,ij->i", weighted(blocks), integers)[:, None]
        norm = np.einsum("ij,ij->i", weighted(integers), integers)[:, None]
        norm = np.maximum(norm, smallest)
        gain = dot * dot / norm
        better = gain > best_gain
        for best, found in (
            (best_gain, gain),
            (best_inverse, inverse),
            (best_zero, zero),
            (best_scale, dot / norm),
        ):
            np.copyto(best, found, where=better)
    _round_int4(blocks, best_inverse, best_zero, integers)
    return integers, best_scale, best_zero


def search_int8(
    blocks: FloatArray, importance: FloatArray, shares: Sequence[float]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Quantise blocks to -127 .. 127; several scales are tried, and the best are taken.

    Least squares refines each scale. The errors are computed as sums of squares. The quotients that
    `search_int4` compares differ by less than float32 resolves in 8 bits.

    Args:
        blocks: float32 [n, block_size].
        importance: the weight of each column's squared error, float32 [block_size].
        shares: the shares of a block's largest magnitude that are tried as the ends of the range.

    Returns:
        Integers [n, block_size], scales [n, 1] and zero points [n, 1], all float32. A block of
        zeros has scale 1. The zero points are 127: an integer plus 127 is in 0 .. 254.
    """
    peak = np.abs(blocks).max(axis=1, keepdims=True)
    best_error = np.full_like(peak, np.inf)
    best_scale, integers = np.ones_like(peak), np.zeros_like(blocks)
    for share in shares:
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            inverse = np.nan_to_num(np.float32(127 / share) / peak, posinf=0)
        tried = np.clip(np.rint(blocks * inverse), -127, 127)
        weighted = tried * importance
        norm = np.einsum("ij,ij->i", weighted, tried)[:, None]
        dot = np.einsum("ij,ij->i", weighted, blocks)[:, None]
        scale = np.divide(dot, norm, out=np.ones_like(dot), where=norm > 0)
        error = np.einsum("ij,j->i", np.square(blocks - tried * scale), importance)[:, None]
        better = error < best_error
        for best, found in ((best_error, error), (best_scale, scale), (integers, tried)):
            np.copyto(best, found, where=better)
    return integers, best_scale, np.full_like(best_scale, 127)


def _round_int4(blocks: FloatArray, inverse: FloatArray, zero: FloatArray, out: FloatArray) -> None:
    np.multiply(blocks, inverse, out=out)
    np.rint(out, out=out)
    np.maximum(out, -zero, out=out)
    np.minimum(out, np.float32(15) - zero, out=out)


def _in_pieces(shape: tuple[int, ...], fill: Callable[[slice], None]) -> None:
    """Call `fill` with slices of a matrix's rows, on all cores that this process may use."""
    rows, width = shape
    map_pieces(fill, rows, max(1, PIECE_VALUES // max(1, width)))


def map_pieces(function: Callable[[slice], Result], rows: int, step: int) -> list[Result]:
    """Return the results of slices of `step` rows, on all cores that this process may use."""
    pieces = [slice(start, start + step) for start in range(0, rows, step)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if len(pieces) <= 1 or cores == 1:
        return [function(piece) for piece in pieces]
    with ThreadPoolExecutor(cores) as pool:
        return list(pool.map(function, pieces))
