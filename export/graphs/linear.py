"""The decoder's linear layers, one class for each way of storing and multiplying them.

All are built from torch's weights [out, in] that read one input, and give one output for each.
"""

from collections.abc import Sequence
from typing import Final, Protocol

import onnx_ir as ir
from onnxscript import nn

from fastvlm_onnx.export.graphs.layers import MICROSOFT, Op, parameter
from fastvlm_onnx.export.graphs.layers_int8 import Int8Linear, quantize_activation
from fastvlm_onnx.export.tensors.lazy_array import LazyArray, stacked, transposed
from fastvlm_onnx.export.tensors.quantized_weight import bit_blocks

# MatMulNBits: quantise activations to int8, each row's blocks by themselves.
ACCURACY_INT8: Final = 4
# A row of zeros has no largest value to divide by.
SMALLEST_PEAK: Final = 1e-30


class Projection(Protocol):
    """x [B, N, in] -> one [B, N, out] for each weight."""

    def __init__(self, weights: Sequence[LazyArray], bias: LazyArray | None = None) -> None: ...

    def __call__(self, op: Op, x: ir.Value) -> list[ir.Value]: ...


def split(op: Op, packed: ir.Value, sizes: Sequence[int]) -> list[ir.Value]:
    """One value cut along its last axis."""
    if len(sizes) == 1:
        return [packed]
    return list(op.Split(packed, list(sizes), axis=-1, _outputs=len(sizes)))


class FloatProjection(nn.Module):  # type: ignore[misc]
    """float32: all weights as one product."""

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


class HalfProjection(nn.Module):  # type: ignore[misc]
    """Weights and products in 16 bits; what goes in and comes out is float32.

    Qwen2 has activations beyond float16's range in its residual stream and before its down
    projections; in float16 these multiply in float32, with the weight widened as the graph is
    loaded. bfloat16 has float32's range.
    """

    def __init__(
        self,
        weights: Sequence[LazyArray],
        bias: LazyArray | None = None,
        *,
        dtype: ir.DataType = ir.DataType.FLOAT16,
    ):
        super().__init__()
        self.sizes = [weight.shape[0] for weight in weights]
        # A product that narrows the intermediate activations is a down projection.
        is_down = len(weights) == 1 and weights[0].shape[1] > weights[0].shape[0]
        self.is_wide, self.dtype = is_down and dtype == ir.DataType.FLOAT16, dtype
        self.weight = parameter(transposed(stacked(weights)), dtype)
        self.bias = None if bias is None else parameter(bias)

    def forward(self, op: Op, x: ir.Value) -> list[ir.Value]:
        if self.is_wide:
            product = op.MatMul(x, op.Cast(self.weight, to=ir.DataType.FLOAT))
        else:
            product = op.MatMul(op.Cast(x, to=self.dtype), self.weight)
            product = op.Cast(product, to=ir.DataType.FLOAT)
        if self.bias is not None:
            product = op.Add(product, self.bias)
        return split(op, product, self.sizes)


class Int8Projection(nn.Module):  # type: ignore[misc]
    """int8 weights with a scale for each output, uint8 activations with one for each token.

    Each row is divided by its largest value, multiplied, and multiplied back: one token a thousand
    times larger than the others, as Qwen2 has them, costs the others nothing.
    """

    def __init__(self, weights: Sequence[LazyArray], bias: LazyArray | None = None):
        super().__init__()
        self.products = nn.ModuleList([Int8Linear(weight) for weight in weights])
        self.bias = None if bias is None else parameter(bias)

    def forward(self, op: Op, x: ir.Value) -> list[ir.Value]:
        peak = op.Max(op.ReduceMax(op.Abs(x), [-1], keepdims=1), SMALLEST_PEAK)
        activation = quantize_activation(op, op.Div(x, peak))
        outputs = [op.Mul(product(op, activation), peak) for product in self.products]
        if self.bias is not None:
            (only,) = outputs
            return [op.Add(only, self.bias)]
        return outputs


class BlockProjection(nn.Module):  # type: ignore[misc]
    """Weights of 4 or 8 bits in blocks with a scale each: few bytes to read for a token."""

    def __init__(
        self,
        weights: Sequence[LazyArray],
        bias: LazyArray | None = None,
        *,
        block_size: int,
        bits: int,
    ):
        super().__init__()
        self.sizes = [weight.shape[0] for weight in weights]
        self.product = BlockProduct(stacked(weights), block_size, bits)
        self.bias = None if bias is None else parameter(bias)

    def forward(self, op: Op, x: ir.Value) -> list[ir.Value]:
        product = self.product(op, x)
        if self.bias is not None:
            product = op.Add(product, self.bias)
        return split(op, product, self.sizes)


class BlockProduct(nn.Module):  # type: ignore[misc]
    """x @ weight.T with a weight [out, in] of 4 or 8 bits in blocks (MatMulNBits)."""

    def __init__(self, weight: LazyArray, block_size: int, bits: int):
        super().__init__()
        self.out_size, self.in_size = weight.shape
        self.block_size, self.bits = block_size, bits
        blocks = bit_blocks(weight, block_size, bits)
        self.weight = parameter(blocks.values, ir.DataType.UINT8)
        self.scales = parameter(blocks.scales)
        self.zero_points = (
            None if blocks.zero_points is None else parameter(blocks.zero_points, ir.DataType.UINT8)
        )

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        return op.MatMulNBits(
            x,
            self.weight,
            self.scales,
            self.zero_points,
            K=self.in_size,
            N=self.out_size,
            bits=self.bits,
            block_size=self.block_size,
            accuracy_level=ACCURACY_INT8,
            _domain=MICROSOFT,
        )
