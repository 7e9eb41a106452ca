"""Quantise a weight so that the outputs on given inputs change least. Numpy only.

The error of a product x @ w.T over all inputs X is trace(d H d.T), where d is the change of the
weight and H = X.T X. Rounding each weight to the nearest value ignores H. GPTQ rounds one column
after the other, and moves the columns that follow so that they make up for the error.

Source: GPTQ (arXiv 2210.17323); as Babai's nearest plane algorithm, arXiv 2507.18553.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from fastvlm_onnx.export.calibration.gram_factor import damped_factor, mirror, permute, solve
from fastvlm_onnx.export.tensors.block_formats import BlockFormat
from fastvlm_onnx.export.tensors.lazy_array import FloatArray
from fastvlm_onnx.export.tensors.quantization import (
    Blocks,
    map_pieces,
    pack_int4_blocks,
    pack_int8_blocks,
    search_int4,
    search_int8,
)
from fastvlm_onnx.export.tensors.salient_channels import BlockIntegers

# Columns whose errors are added to later columns in one matrix product.
LAZY_COLUMNS: Final = 128
# Columns within those whose errors are added one by one.
INNER_COLUMNS: Final = 16
# Rows of a weight that are rounded at a time.
PIECE_ROWS: Final = 512
# With a Hessian, a clipped range can pay more than with the plain squared error.
SHARES: Final = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 0.79, 0.76, 0.73, 0.7, 1.04)


@dataclass(frozen=True)
class GPTQ:
    """The settings of GPTQ.

    Attributes:
        damping: the share of H's diagonal that is added to it. The larger it is, the less a column
            makes up for the errors of others. A share of the mean diagonal would drown the small
            channels of a decoder, whose largest have a thousand times the mean.
        has_activation_order: quantise the columns of the largest inputs first. The scales are then
            found before any column is moved.
        corrects_drift: the weight also makes up for the errors of the products before it
            (`Rounder.correct`).
    """

    damping: float = 0.05
    has_activation_order: bool = True
    corrects_drift: bool = False


@dataclass(frozen=True)
class Levels:
    """The integers of a number format.

    Attributes:
        largest: an integer plus the zero point of its block is in 0 .. largest.
        search: finds the integers, scales and zero points of blocks, given the importance of their
            columns and the shares of their range to try.
    """

    largest: int
    search: Callable[
        [FloatArray, FloatArray, Sequence[float]], tuple[FloatArray, FloatArray, FloatArray]
    ]


INT4: Final = Levels(15, search_int4)
INT8: Final = Levels(254, search_int8)


class Rounder:
    """Rounds weights of products that have the same inputs."""

    def __init__(self, gram: FloatArray, settings: GPTQ) -> None:
        """Factorise H.

        Args:
            gram: H = X.T X of the inputs, float32 [in, in], of which the upper triangle is read.
                It is overwritten.
            settings: the settings of GPTQ.
        """
        self._settings = settings
        mirror(gram)
        self._order = np.arange(len(gram))
        if settings.has_activation_order:
            self._order = np.argsort(-np.diagonal(gram), kind="stable")
            permute(gram, self._order)
        self._factor = damped_factor(gram, settings.damping)

    def correct(self, weight: FloatArray, drift: FloatArray) -> None:
        """Move a weight so that its outputs are nearest to the outputs that are wanted.

        The damping keeps it near the given weight.

        Args:
            weight: float32 [out, in]. It is moved in place.
            drift: D.T X, float32 [out, in]. D are the outputs that are wanted less those of the
                weight, and X the inputs. It is overwritten.
        """
        pieces = [slice(i, i + PIECE_ROWS) for i in range(0, len(weight), PIECE_ROWS)]
        for rows in pieces:
            drift[rows] = drift[rows, self._order]
        solve(self._factor, drift)
        for rows in pieces:
            weight[rows][:, self._order] += drift[rows]

    def quantize(self, weight: FloatArray, form: BlockFormat) -> Blocks:
        """Quantise a weight in blocks.

        Args:
            weight: float32 [out, in].
            form: the format of the blocks.
        """
        found = self.quantize_integers(weight, form)
        if form.bits == 8:
            return pack_int8_blocks(found.integers, found.scales, form.block_size)
        return pack_int4_blocks(found.integers, found.scales, found.zeros, form.block_size)

    def quantize_integers(
        self, weight: FloatArray, form: BlockFormat, *, salient: int = 0
    ) -> BlockIntegers:
        """Quantise a weight in blocks that are not packed.

        Args:
            weight: float32 [out, in].
            form: the format of the blocks.
            salient: so many of the first columns have 8 bits, a multiple of the block size.
        """
        blocks = -(-weight.shape[1] // form.block_size)
        salient_blocks = salient // form.block_size
        levels = [INT8] * salient_blocks + [INT8 if form.bits == 8 else INT4] * blocks
        return BlockIntegers(*self._round(weight, form, levels[:blocks]))

    def quantize_channels(self, weight: FloatArray) -> tuple[NDArray[np.int8], FloatArray]:
        """Quantise a weight to int8 with a scale for each output channel.

        Args:
            weight: float32 [out, in].

        Returns:
            int8 [out, in] in -127 .. 127, and scales float32 [out].
        """
        integers, scales, _ = self._round(weight, BlockFormat(8, weight.shape[1]), [INT8])
        return integers, scales[:, 0]

    def _round(
        self, weight: FloatArray, form: BlockFormat, levels: Sequence[Levels]
    ) -> tuple[NDArray[np.int8], FloatArray, NDArray[np.uint8]]:
        # Rows are independent of each other, and pieces of them take little memory.
        pieces = map_pieces(
            lambda rows: _round_columns(
                weight[rows], self._factor, self._order, form, self._settings, levels
            ),
            len(weight),
            PIECE_ROWS,
        )
        integers, scales, zeros = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
        return integers, scales, zeros


def stored_scales(scales: FloatArray, form: BlockFormat) -> FloatArray:
    """Return scales as a format stores them, in float32."""
    if not form.has_bfloat16_scales:
        return scales
    rounded: FloatArray = scales.astype(ml_dtypes.bfloat16).astype(np.float32)
    return rounded


def _round_columns(
    weight: FloatArray,
    factor: FloatArray,
    order: NDArray[np.int64],
    form: BlockFormat,
    settings: GPTQ,
    levels: Sequence[Levels],
) -> tuple[NDArray[np.int8], FloatArray, NDArray[np.uint8]]:
    """Round the columns of a weight in a given order.

    The rounding error of a row d is ||d @ factor||^2. Column k of d @ factor depends on the columns
    up to k alone. The best value of column k is the value that makes this sum zero.

    Args:
        weight: float32 [out, in], in the order of the block format.
        factor: upper triangular, float32 [in, in]; factor @ factor.T is H, with its rows and
            columns in the order of `order`.
        order: the columns of the weight in the order in which they are rounded.
        form: the format of the blocks.
        settings: the settings of GPTQ.
        levels: the integers of each block.

    Returns:
        Integers int8 [out, in], scales float32 [out, blocks] and zero points uint8 [out, blocks].
    """
    out_size, in_size = weight.shape
    block_size = form.block_size
    blocks = -(-in_size // block_size)
    block_of = order // block_size
    # Columns are rows here, so that a column is contiguous.
    original = np.ascontiguousarray(weight.T[order])
    change = np.zeros_like(original)
    integers = np.zeros(original.shape, np.int8)
    scales, zeros = (np.zeros((blocks, out_size), np.float32) for _ in range(2))
    if settings.has_activation_order:
        importance = np.empty(in_size, np.float32)
        importance[order] = np.einsum("ij,ij->i", factor, factor)
        for block in range(blocks):
            columns = slice(block * block_size, min((block + 1) * block_size, in_size))
            _, scale, zero = levels[block].search(weight[:, columns], importance[columns], SHARES)
            scales[block], zeros[block] = stored_scales(scale[:, 0], form), zero[:, 0]

    # Scales that are found on moved columns need all columns of their block at once.
    step = LAZY_COLUMNS if settings.has_activation_order else max(LAZY_COLUMNS, block_size)
    for start in range(0, in_size, step):
        stop = min(start + step, in_size)
        inverse = np.linalg.inv(factor[start:stop, start:stop].astype(np.float64))
        inverse = inverse.astype(np.float32)
        # The values that make up for the errors of all columns before `start`.
        moved = original[start:stop] + inverse.T @ (factor[:start, start:stop].T @ change[:start])
        for inner in range(0, stop - start, INNER_COLUMNS):
            inner_stop = min(inner + INNER_COLUMNS, stop - start)
            errors = np.empty((inner_stop - inner, out_size), np.float32)
            for k in range(inner, inner_stop):
                column = start + k
                block = block_of[column]
                if not settings.has_activation_order and column % block_size == 0:
                    width = min(block_size, stop - column)
                    spread = np.diagonal(factor)[column : column + width] ** 2
                    values = np.ascontiguousarray(moved[k : k + width].T)
                    _, scale, zero = levels[block].search(values, spread, SHARES)
                    scales[block], zeros[block] = stored_scales(scale[:, 0], form), zero[:, 0]
                scale, zero = scales[block], zeros[block]
                with np.errstate(divide="ignore", invalid="ignore"):
                    nearest = np.nan_to_num(moved[k] / scale)
                rounded = np.clip(np.rint(nearest), -zero, levels[block].largest - zero)
                integers[column] = rounded
                change[column] = original[column] - rounded * scale
                errors[k - inner] = (moved[k] - rounded * scale) / inverse[k, k]
                moved[k + 1 : inner_stop] -= (
                    inverse[k, k + 1 : inner_stop, None] * errors[k - inner]
                )
            moved[inner_stop:] -= inverse[inner:inner_stop, inner_stop:].T @ errors
    unordered = np.empty_like(integers)
    unordered[order] = integers
    return unordered.T, np.ascontiguousarray(scales.T), zeros.T.astype(np.uint8)
