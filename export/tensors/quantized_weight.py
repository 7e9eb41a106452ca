"""Quantised weights as tensors of a graph: values, scales and zero points of one computation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvlm_onnx.export.tensors.block_formats import BlockFormat
from fastvlm_onnx.export.tensors.lazy_array import FloatArray, LazyArray
from fastvlm_onnx.export.tensors.quantization import quantize_blocks, quantize_rows

Array = NDArray[Any]
Quantize = Callable[[FloatArray], Sequence[Array]]


@dataclass(frozen=True)
class QuantizedTensors:
    """The tensors of a weight that was quantised before, in the shapes that its product reads.

    Attributes:
        values: the integers.
        scales: float32.
        zero_points: uint8, two in a byte; None with 8 bits.
        has_bfloat16_scales: the scales are stored in bfloat16.
    """

    values: LazyArray
    scales: LazyArray
    zero_points: LazyArray | None = None
    has_bfloat16_scales: bool = False

    def columns(self, start: int, stop: int) -> "QuantizedTensors":
        """Return some output channels of an int8 weight with a scale for each channel."""
        return QuantizedTensors(
            self.values.then(lambda v: v[:, start:stop], self.values.shape[0], stop - start),
            self.scales.then(lambda s: s[start:stop], stop - start),
        )


CalibratedWeights = Mapping[tuple[int, str], QuantizedTensors]
"""Weights that a calibration quantised, by layer (counted from 0) and product: "qkv_proj"."""


class QuantizedWeight:
    """A weight [out, in] that is quantised when one of its tensors is read.

    One computation gives the values and their scales (and zero points), and a package stores them
    as separate tensors. Reading the values memoises the scales, which are small. Reading the scales
    returns the memo and releases it. A graph lists values before scales, so writing the graph
    quantises a weight once, and at most one weight's scales are in memory.

    Any other order gives the same tensors. Reading scales without a memo quantises the whole weight
    and drops the values.

    Attributes:
        values: the quantised integers, in the shape that the product reads.
        scales: float32, a row (or number) for each row of the weight.
        zero_points: uint8, a row for each row of the weight; None if the zero point is constant.
        has_bfloat16_scales: False.
    """

    has_bfloat16_scales = False

    def __init__(
        self,
        weight: LazyArray,
        quantize: Quantize,
        shape: tuple[int, ...],
        *shapes: tuple[int, ...],
        by_rows: bool,
    ) -> None:
        """Declare the tensors; nothing is read.

        Args:
            weight: float32 [out, in].
            quantize: turns some rows of the weight into their values, scales and zero points.
            shape: the shape of the values.
            shapes: the shapes of the scales and, where there are any, of the zero points.
            by_rows: whether the values of some rows are rows of the values.
        """
        self._weight, self._quantize = weight, quantize
        # For each of `shapes`: the first row of a part of the weight -> the array of that part.
        self._memo: list[dict[int, Array]] = [{} for _ in shapes]
        read_rows = self._read_value_rows if by_rows and weight.read_rows else None
        self.values = LazyArray(shape, self._read_values, read_rows)
        others = [LazyArray(s, partial(self._take_memo, i)) for i, s in enumerate(shapes)]
        self.scales = others[0]
        self.zero_points = others[1] if len(others) > 1 else None

    def _read_values(self) -> Array:
        return self._quantize_and_memoise(0, self._weight.read())

    def _read_value_rows(self, start: int, stop: int) -> Array:
        assert self._weight.read_rows is not None
        return self._quantize_and_memoise(start, self._weight.read_rows(start, stop))

    def _quantize_and_memoise(self, start: int, rows: FloatArray) -> Array:
        values, *others = self._quantize(rows)
        for memo, array in zip(self._memo, others, strict=True):
            memo[start] = array
        return values

    def _take_memo(self, index: int) -> Array:
        memo = self._memo[index]
        if sum(map(len, memo.values())) != self._weight.shape[0]:
            memo.clear()
            for _ in self.values.chunks():
                pass
        array = np.concatenate([memo[start] for start in sorted(memo)])
        memo.clear()
        return array


def quantize_channels_lazily(weight: LazyArray) -> QuantizedWeight:
    """Quantise to int8 with a scale for each output channel.

    Args:
        weight: float32 [out, in].

    Returns:
        Values int8 [in, out], transposed as integer products read them, and scales [out].
    """
    out_size, in_size = weight.shape

    def quantize(rows: FloatArray) -> Sequence[Array]:
        values, scales = quantize_rows(rows)
        return values.T, scales

    return QuantizedWeight(weight, quantize, (in_size, out_size), (out_size,), by_rows=False)


def quantize_axis_lazily(weight: LazyArray, axis: int) -> QuantizedWeight:
    """Quantise to int8 with a scale for each index of one axis, as DequantizeLinear reads them.

    Args:
        weight: float32, of any shape.
        axis: the axis of the output channels.

    Returns:
        Values int8 in the shape of the weight, and scales with one axis.
    """
    shape = weight.shape
    first = (shape[axis], *shape[:axis], *shape[axis + 1 :])

    def quantize(rows: FloatArray) -> Sequence[Array]:
        values, scales = quantize_rows(rows.reshape(len(rows), -1))
        return np.moveaxis(values.reshape(first), 0, axis), scales

    moved = weight.then(lambda w: np.moveaxis(w, axis, 0), *first)
    return QuantizedWeight(moved, quantize, shape, (shape[axis],), by_rows=False)


def quantize_blocks_lazily(weight: LazyArray, block_size: int, bits: int) -> QuantizedWeight:
    """Quantise in blocks along the rows, as `quantize_blocks` does.

    Args:
        weight: float32 [out, in].
        block_size: consecutive values of a row that share a scale.
        bits: 4 or 8.

    Returns:
        The tensors that MatMulNBits reads, in the shapes of `quantization.Blocks`.
    """

    def quantize(rows: FloatArray) -> Sequence[Array]:
        found = quantize_blocks(rows, block_size, bits)
        arrays: list[Array] = [found.packed, found.scales]
        return arrays if found.zero_points is None else [*arrays, found.zero_points]

    shapes = _block_shapes(weight.shape, BlockFormat(bits, block_size))
    return QuantizedWeight(weight, quantize, *shapes, by_rows=True)


def stored_channels(shape: tuple[int, ...], read: Callable[[str], Array]) -> QuantizedTensors:
    """Return the tensors of an int8 weight that was quantised before.

    Args:
        shape: the shape of the weight, [out, in].
        read: reads "values", int8 [out, in], or "scales", float32 [out].
    """
    out_size, in_size = shape
    values = LazyArray((in_size, out_size), lambda: read("values").T)
    return QuantizedTensors(values, LazyArray((out_size,), partial(read, "scales")))


def stored_blocks(
    shape: tuple[int, ...], form: BlockFormat, read: Callable[[str], Array]
) -> QuantizedTensors:
    """Return the tensors of a weight in blocks that was quantised before.

    Args:
        shape: the shape of the weight, [out, in].
        form: the format in which it was quantised.
        read: reads an array of `quantization.Blocks` by its attribute's name.
    """
    names = ("packed", "scales", "zero_points")
    shapes = _block_shapes(shape, form)
    arrays = [LazyArray(s, partial(read, name)) for name, s in zip(names, shapes, strict=False)]
    zero_points = arrays[2] if len(arrays) > 2 else None
    return QuantizedTensors(arrays[0], arrays[1], zero_points, form.has_bfloat16_scales)


def _block_shapes(shape: tuple[int, ...], form: BlockFormat) -> list[tuple[int, ...]]:
    """Return the shapes of values, scales and, with 4 bits, zero points of a weight [out, in]."""
    out_size, in_size = shape
    blocks = -(-in_size // form.block_size)
    shapes: list[tuple[int, ...]] = [
        (out_size, blocks, form.block_size * form.bits // 8),
        (out_size, blocks),
    ]
    if form.bits == 4:
        shapes.append((out_size, -(-blocks // 2)))
    return shapes
