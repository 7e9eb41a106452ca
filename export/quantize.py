"""Weights in 8 and 4 bits: float32 matrices [out, in] -> integers and scales. Numpy only.

Scales are chosen without calibration data: for blocks of few bits, several are tried and the one
that leaves the smallest squared error is taken.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fastvlm_onnx.export.tensors import FloatArray

# float32 values that one thread works on at a time: few enough to stay in a cache, enough to hide
# what a call costs.
PIECE_VALUES: Final = 262_144
# Where in -8 .. 7 the largest value of a block may land. Clipping it a little, or leaving room, can
# serve the others better; least squares then refines the scale of the best.
INT4_PEAKS: Final = (-8.0, -7.6, -7.2, -8.4, -8.8, -6.8, -9.4, -6.4)


@dataclass(frozen=True)
class Blocks:
    """A matrix [out, in] in blocks along its rows, as com.microsoft.MatMulNBits reads it.

    Attributes:
        packed: uint8 [out, blocks, block_size * bits / 8], the lower half of a byte first; the
            value 2^(bits - 1) stands for zero.
        scales: float32 [out, blocks].
        bits: 4 or 8.
    """

    packed: NDArray[np.uint8]
    scales: FloatArray
    bits: int


def quantize_rows(weight: FloatArray) -> tuple[NDArray[np.int8], FloatArray]:
    """One scale for each row.

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
        # A row of denormals divides to more than 127.
        np.rint(np.clip(scaled, -127, 127), out=scaled)
        values[rows] = scaled

    _in_pieces(weight.shape, fill)
    return values, scales


def quantize_blocks(weight: FloatArray, block_size: int, bits: int = 4) -> Blocks:
    """One scale for each block of a row.

    Args:
        weight: float32 [out, in]; the last block of a row is filled up with zeros.
        block_size: 16, 32, 64, 128 or 256 values.
        bits: 4 or 8.
    """
    out_size, in_size = weight.shape
    blocks = -(-in_size // block_size)
    packed = np.empty((out_size, blocks, block_size * bits // 8), np.uint8)
    scales = np.empty((out_size, blocks), np.float32)
    quantize = _search_int4 if bits == 4 else _nearest_int8

    def fill(rows: slice) -> None:
        piece = weight[rows]
        if in_size % block_size:
            piece = np.pad(piece, ((0, 0), (0, blocks * block_size - in_size)))
        cut = np.ascontiguousarray(piece).reshape(-1, block_size)
        integers, found = quantize(cut)
        stored = (integers + np.float32(1 << (bits - 1))).astype(np.uint8)
        if bits == 4:
            stored = stored[:, 0::2] | stored[:, 1::2] << np.uint8(4)
        packed[rows] = stored.reshape(-1, *packed.shape[1:])
        scales[rows] = found.reshape(-1, blocks)

    _in_pieces(weight.shape, fill)
    return Blocks(packed, scales, bits)


def dequantize_blocks(blocks: Blocks, in_size: int) -> FloatArray:
    """float32 [out, in_size], what MatMulNBits multiplies with."""
    packed = blocks.packed
    if blocks.bits == 4:
        packed = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], -1)
    values = (packed.astype(np.float32) - (1 << (blocks.bits - 1))) * blocks.scales[..., None]
    return values.reshape(len(values), -1)[:, :in_size]


def _nearest_int8(blocks: FloatArray) -> tuple[FloatArray, FloatArray]:
    peaks = np.abs(blocks).max(axis=1, keepdims=True)
    scales = np.where(peaks > 0, peaks / np.float32(127), np.float32(1))
    return np.rint(np.clip(blocks / scales, -127, 127)), scales


def _search_int4(blocks: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Integers in -8 .. 7 and scales [n, 1] for blocks [n, block_size].

    For given integers q the best scale is (w . q) / (q . q), and leaves the squared error
    w . w - (w . q)^2 / (q . q): the largest quotient wins.
    """
    highest, lowest = blocks.max(axis=1, keepdims=True), blocks.min(axis=1, keepdims=True)
    # The value of largest magnitude, with its sign: it lands on the negative side, which is longer.
    peaks = np.where(highest > -lowest, highest, lowest)
    peaks[peaks == 0] = 1
    best_gain = np.full((len(blocks), 1), -1, np.float32)
    best_inverse = np.empty_like(best_gain)
    best_scale = np.empty_like(best_gain)
    integers = np.empty_like(blocks)
    for landing in INT4_PEAKS:
        with np.errstate(over="ignore"):
            inverse = np.nan_to_num(np.float32(landing) / peaks, posinf=0, neginf=0)
        _round_int4(blocks, inverse, integers)
        dot = np.einsum("ij,ij->i", blocks, integers)[:, None]
        norm = np.maximum(np.einsum("ij,ij->i", integers, integers)[:, None], np.float32(1))
        gain = dot * dot / norm
        better = gain > best_gain
        np.copyto(best_gain, gain, where=better)
        np.copyto(best_inverse, inverse, where=better)
        np.copyto(best_scale, dot / norm, where=better)
    _round_int4(blocks, best_inverse, integers)
    return integers, best_scale


def _round_int4(blocks: FloatArray, inverse: FloatArray, out: FloatArray) -> None:
    np.multiply(blocks, inverse, out=out)
    np.rint(out, out=out)
    np.maximum(out, np.float32(-8), out=out)
    np.minimum(out, np.float32(7), out=out)


def _in_pieces(shape: tuple[int, ...], fill: Callable[[slice], None]) -> None:
    """Call `fill` for pieces of a matrix's rows, over the cores this process may use."""
    rows, width = shape
    step = max(1, PIECE_VALUES // max(1, width))

    def pieces() -> Iterator[slice]:
        return (slice(start, start + step) for start in range(0, rows, step))

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if rows <= step or cores == 1:
        for piece in pieces():
            fill(piece)
        return
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(fill, pieces()))
