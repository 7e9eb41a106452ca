"""Quantised weights as tensors of a graph: values and scales, computed together, written apart."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvlm_onnx.export.tensors.lazy_array import FloatArray, LazyArray
from fastvlm_onnx.export.tensors.quantization import quantize_blocks, quantize_rows

Array = NDArray[Any]
Quantize = Callable[[FloatArray], Sequence[Array]]


class QuantizedWeight:
    """A weight [out, in] quantised when its values are read, some rows at a time where it can be.

    Finding the scales is the costly part: what was found with the values is kept until it is asked
    for, which is when the graph's next tensors are written.

    Attributes:
        values: the quantised integers, of the shape that `quantize` gives.
        scales: float32, one row (or number) for each of the weight's rows.
        zero_points: uint8, likewise; None where zero is always the same value.
    """

    def __init__(
        self,
        weight: LazyArray,
        quantize: Quantize,
        shape: tuple[int, ...],
        *shapes: tuple[int, ...],
        by_rows: bool,
    ) -> None:
        """Take what `quantize` makes of some rows: values, and arrays with a row for each."""
        self._weight, self._quantize = weight, quantize
        self._kept: list[dict[int, Array]] = [{} for _ in shapes]
        rows = self._read_rows if by_rows and weight.read_rows else None
        self.values = LazyArray(shape, self._read, rows)
        kept = [LazyArray(s, partial(self._read_kept, i)) for i, s in enumerate(shapes)]
        self.scales = kept[0]
        self.zero_points = kept[1] if len(kept) > 1 else None

    def _read(self) -> Array:
        return self._keep(0, self._weight.read())

    def _read_rows(self, start: int, stop: int) -> Array:
        assert self._weight.read_rows is not None
        return self._keep(start, self._weight.read_rows(start, stop))

    def _keep(self, start: int, rows: FloatArray) -> Array:
        values, *found = self._quantize(rows)
        for kept, array in zip(self._kept, found, strict=True):
            kept[start] = array
        return values

    def _read_kept(self, index: int) -> Array:
        kept = self._kept[index]
        if sum(map(len, kept.values())) != self._weight.shape[0]:
            kept.clear()
            for _ in self.values.chunks():
                pass
        array = np.concatenate([kept[start] for start in sorted(kept)])
        kept.clear()
        return array


def quantize_channels_lazily(weight: LazyArray) -> QuantizedWeight:
    """int8 [in, out], the transpose that integer products want; scales [out]."""
    out_size, in_size = weight.shape

    def quantize(rows: FloatArray) -> Sequence[Array]:
        values, scales = quantize_rows(rows)
        return values.T, scales

    return QuantizedWeight(weight, quantize, (in_size, out_size), (out_size,), by_rows=False)


def quantize_blocks_lazily(weight: LazyArray, block_size: int, bits: int) -> QuantizedWeight:
    """The tensors that MatMulNBits reads, as `quantize.Blocks` holds them."""
    out_size, in_size = weight.shape
    blocks = -(-in_size // block_size)

    def quantize(rows: FloatArray) -> Sequence[Array]:
        found = quantize_blocks(rows, block_size, bits)
        arrays: list[Array] = [found.packed, found.scales]
        return arrays if found.zero_points is None else [*arrays, found.zero_points]

    shapes = [(out_size, blocks, block_size * bits // 8), (out_size, blocks)]
    if bits == 4:
        shapes.append((out_size, -(-blocks // 2)))
    return QuantizedWeight(weight, quantize, *shapes, by_rows=True)
