"""The decoder's linear layers: one class for each way to store and multiply weights.

Every class takes torch's weights [out, in] that read the same input, and gives one output for each
weight.
"""

from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from fastvlm_onnx.export.graphs.layers import MICROSOFT, Op, parameter
from fastvlm_onnx.export.tensors.lazy_array import LazyArray, stacked, transposed
from fastvlm_onnx.export.tensors.quantized_weight import QuantizedTensors, quantize_blocks_lazily

# MatMulNBits: quantise activations to int8, with a scale for each block of each row.
ACCURACY_INT8: Final = 4


class Linear(Protocol):
    """Map x [B, N, in] to one [B, N, out] for each weight."""

    def __init__(self, weights: Sequence[LazyArray], bias: LazyArray | None = None) -> None: ...

    def __call__(self, op: Op, x: ir.Value) -> list[ir.Value]: ...


def split(op: Op, packed: ir.Value, sizes: Sequence[int]) -> list[ir.Value]:
    """Cut a value along its last axis into parts of the given sizes."""
    if len(sizes) == 1:
        return [packed]
    return list(op.Split(packed, list(sizes), axis=-1, _outputs=len(sizes)))


class FloatLinear(nn.Module):
    """Weights and products in float32; all weights form one product."""

    def __init__(self, weights: Sequence[LazyArray], bias: LazyArray | None = None):
        super().__init__()
        self.sizes = [weight.shape[0] for weight in weights]
        self.weight = parameter(transposed(stacked(weights)))
        self.bias = None if bias is None else parameter(bias)

    def forward(self, op: Op, x: ir.Value) -> list[ir.Value]:
        product = op.MatMul(x, self.weight)
        if self.bias is not None:
            product = op.Add(product, self.bias)
        return split(op, product, self.sizes)


class Float16Linear(nn.Module):
    """Weights and products in float16 or bfloat16; inputs and outputs are float32."""

    def __init__(
        self,
        weights: Sequence[LazyArray],
        bias: LazyArray | None = None,
        *,
        dtype: ir.DataType = ir.DataType.FLOAT16,
        keeps_float32: bool = False,
    ):
        """Declare the layer.

        Args:
            weights: torch's weights [out, in].
            bias: [out], for a single weight.
            dtype: FLOAT16 or BFLOAT16, the dtype of the stored weights.
            keeps_float32: multiply in float32, for inputs beyond the range of `dtype`. ONNX
                Runtime casts the weight to float32 once, when it loads the graph.
        """
        super().__init__()
        self.sizes = [weight.shape[0] for weight in weights]
        self.keeps_float32, self.dtype = keeps_float32, dtype
        self.weight = parameter(transposed(stacked(weights)), dtype)
        self.bias = None if bias is None else parameter(bias)

    def forward(self, op: Op, x: ir.Value) -> list[ir.Value]:
        if self.keeps_float32:
            product = op.MatMul(x, op.Cast(self.weight, to=ir.DataType.FLOAT))
        else:
            product = op.MatMul(op.Cast(x, to=self.dtype), self.weight)
            product = op.Cast(product, to=ir.DataType.FLOAT)
        if self.bias is not None:
            product = op.Add(product, self.bias)
        return split(op, product, self.sizes)


class BlockLinear(nn.Module):
    """Weights of 4 or 8 bits in blocks, with a scale for each block; all form one product."""

    def __init__(
        self,
        weights: Sequence[LazyArray],
        bias: LazyArray | None = None,
        *,
        block_size: int,
        bits: int,
        quantized: QuantizedTensors | None = None,
    ):
        super().__init__()
        self.sizes = [weight.shape[0] for weight in weights]
        self.product = MatMulNBits(stacked(weights), block_size, bits, quantized)
        self.bias = None if bias is None else parameter(bias)

    def forward(self, op: Op, x: ir.Value) -> list[ir.Value]:
        product = self.product(op, x)
        if self.bias is not None:
            product = op.Add(product, self.bias)
        return split(op, product, self.sizes)


class MatMulNBits(nn.Module):
    """x @ weight.T as com.microsoft.MatMulNBits, with a weight [out, in] of 4 or 8 bits."""

    def __init__(
        self,
        weight: LazyArray,
        block_size: int,
        bits: int,
        quantized: QuantizedTensors | None = None,
        shape: tuple[int, int] | None = None,
    ):
        """Declare the product.

        Args:
            weight: torch's weight [out, in].
            block_size: consecutive values of a row that share a scale.
            bits: 4 or 8.
            quantized: the weight in this format; it is rounded when it is written when None.
            shape: the shape of `quantized`; that of the weight when None.
        """
        super().__init__()
        self.out_size, self.in_size = shape or weight.shape
        self.block_size, self.bits = block_size, bits
        blocks = quantized or quantize_blocks_lazily(weight, block_size, bits)
        self.weight = parameter(blocks.values, ir.DataType.UINT8)
        self.has_bfloat16_scales = blocks.has_bfloat16_scales
        dtype = ir.DataType.BFLOAT16 if self.has_bfloat16_scales else ir.DataType.FLOAT
        self.scales = parameter(blocks.scales, dtype)
        self.zero_points = (
            None if blocks.zero_points is None else parameter(blocks.zero_points, ir.DataType.UINT8)
        )

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        scales: ir.Value = self.scales
        if self.has_bfloat16_scales:
            scales = op.Cast(scales, to=ir.DataType.FLOAT)
        return op.MatMulNBits(
            x,
            self.weight,
            scales,
            self.zero_points,
            K=self.in_size,
            N=self.out_size,
            bits=self.bits,
            block_size=self.block_size,
            accuracy_level=ACCURACY_INT8,
            _domain=MICROSOFT,
        )

    def rows(self, op: Op, indices: ir.Value) -> ir.Value:
        """Return some rows of an 8-bit weight in float32, [B, 1, count, in].

        Args:
            op: the op builder.
            indices: the rows, int64 [B, 1, count].
        """
        assert self.bits == 8
        assert not self.has_bfloat16_scales
        zero_point = op.Constant(value=ir.tensor(np.float32(128)))
        integers = op.Cast(op.Gather(self.weight, indices), to=ir.DataType.FLOAT)
        scales = op.Unsqueeze(op.Gather(self.scales, indices), [-1])
        blocks = op.Mul(op.Sub(integers, zero_point), scales)
        # The last block of a row may be padded.
        return op.Slice(op.Reshape(blocks, [0, 0, 0, -1]), [0], [self.in_size], [-1])
