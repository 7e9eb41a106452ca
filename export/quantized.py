"""Quantised weights as tensors of a graph: values and scales, computed together, written apart."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvlm_onnx.export.quantize import quantize_blocks, quantize_rows
from fastvlm_onnx.export.tensors import FloatArray, LazyArray

Quantize = Callable[[FloatArray], tuple[NDArray[Any], FloatArray]]


class QuantizedWeight:
    """A weight [out, in] quantised when its values are read, some rows at a time where it can be.

    Finding the scales is the costly part: those of the rows that were read are kept until they are
    asked for, which is when the graph's next tensor is written.

    Attributes:
        values: the quantised integers, of the shape that `quantize` gives.
        scales: float32, one row (or number) for each of the weight's rows.
    """

    def __init__(
        self,
        weight: LazyArray,
        quantize: Quantize,
        shape: tuple[int, ...],
        scales_shape: tuple[int, ...],
        *,
        by_rows: bool,
    ) -> None:
        self._weight, self._quantize = weight, quantize
        self._kept: dict[int, FloatArray] = {}
        rows = self._read_rows if by_rows and weight.read_rows else None
        self.values = LazyArray(shape, self._read, rows)
        self.scales = LazyArray(scales_shape, self._read_scales)

    def _read(self) -> NDArray[Any]:
        values, self._kept[0] = self._quantize(self._weight.read())
        return values

    def _read_rows(self, start: int, stop: int) -> NDArray[Any]:
        assert self._weight.read_rows is not None
        values, self._kept[start] = self._quantize(self._weight.read_rows(start, stop))
        return values

    def _read_scales(self) -> FloatArray:
        if sum(map(len, self._kept.values())) != self._weight.shape[0]:
            self._kept.clear()
            for _ in self.values.chunks():
                pass
        scales = np.concatenate([self._kept[start] for start in sorted(self._kept)])
        self._kept.clear()
        return scales


def int8_columns(weight: LazyArray) -> QuantizedWeight:
    """int8 [in, out], the transpose that integer products want; scales [out]."""
    out_size, in_size = weight.shape

    def quantize(rows: FloatArray) -> tuple[NDArray[Any], FloatArray]:
        values, scales = quantize_rows(rows)
        return values.T, scales

    return QuantizedWeight(weight, quantize, (in_size, out_size), (out_size,), by_rows=False)


def bit_blocks(weight: LazyArray, block_size: int, bits: int) -> QuantizedWeight:
    """uint8 [out, blocks, block_size * bits / 8] as MatMulNBits reads it; scales [out, blocks]."""
    out_size, in_size = weight.shape
    blocks = -(-in_size // block_size)

    def quantize(rows: FloatArray) -> tuple[NDArray[Any], FloatArray]:
        quantized = quantize_blocks(rows, block_size, bits)
        return quantized.packed, quantized.scales

    shape = (out_size, blocks, block_size * bits // 8)
    return QuantizedWeight(weight, quantize, shape, (out_size, blocks), by_rows=True)
