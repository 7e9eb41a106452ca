"""Building blocks with int8 weights and uint8 activations; inputs and outputs are float32.

Written for ONNX Runtime's CPU provider, with com.microsoft operators. Weights have a scale for each
output channel. Activations have one scale and one zero point for the whole tensor, which are
computed when the graph runs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from fastvlm_onnx.export.graphs.layers import MICROSOFT, Op, Shape, parameter
from fastvlm_onnx.export.tensors.lazy_array import LazyArray
from fastvlm_onnx.export.tensors.quantized_weight import QuantizedTensors, quantize_channels_lazily

# The intermediate activations of a ConvFFN are computed in tiles of at most this size, so that they
# stay in the processor's cache between the two products.
TILE_BYTES: Final = 3_200_000


@dataclass(frozen=True)
class QuantizedActivation:
    """uint8 values, and one scale and one zero point for all of them."""

    values: ir.Value
    scale: ir.Value | float
    zero_point: ir.Value


def quantize_activation(op: Op, x: ir.Value) -> QuantizedActivation:
    """Quantise a tensor once, for all products that read it."""
    return QuantizedActivation(*op.DynamicQuantizeLinear(x, _outputs=3))


class Int8Linear(nn.Module):
    """x @ weight.T + bias over the last axis; `weight` is torch's [out, in]."""

    def __init__(
        self,
        weight: LazyArray,
        bias: LazyArray | None = None,
        quantized: QuantizedTensors | None = None,
    ):
        """Declare the product.

        Args:
            weight: torch's weight [out, in].
            bias: [out].
            quantized: values int8 [in, out] and scales [out]; the weight is rounded to the nearest
                when it is written when None.
        """
        super().__init__()
        columns = quantized or quantize_channels_lazily(weight)
        self.weight = parameter(columns.values, ir.DataType.INT8)
        self.scale = parameter(columns.scales)
        self.bias = None if bias is None else parameter(bias)

    def forward(self, op: Op, x: ir.Value | QuantizedActivation) -> ir.Value:
        if isinstance(x, QuantizedActivation):
            return op.MatMulIntegerToFloat(
                x.values,
                self.weight,
                x.scale,
                self.scale,
                x.zero_point,
                None,
                self.bias,
                _domain=MICROSOFT,
            )
        # The bias is an input of the product. ONNX Runtime would fuse an Add before Gelu into
        # BiasGelu, which is slower than Gelu.
        return op.DynamicQuantizeMatMul(
            x, self.weight, self.scale, None, self.bias, _domain=MICROSOFT
        )


def pointwise(weight: LazyArray) -> LazyArray:
    """Reshape the weight of a 1x1 convolution [out, in, 1, 1] to [out, in]."""
    out_size, in_size, *_ = weight.shape
    return weight.then(lambda w: w.reshape(out_size, in_size), out_size, in_size)


def to_channels_last(op: Op, x: ir.Value) -> ir.Value:
    """Transpose [B, C, H, W] to [B, H, W, C]."""
    return op.Transpose(x, perm=[0, 2, 3, 1])


def to_channels_first(op: Op, x: ir.Value) -> ir.Value:
    """Transpose [B, H, W, C] to [B, C, H, W]."""
    return op.Transpose(x, perm=[0, 3, 1, 2])


def fewest_parts(rows: int, row_bytes: int) -> int:
    """Return the least number of equal parts of at most TILE_BYTES that rows can be cut into."""
    least = math.ceil(rows * row_bytes / TILE_BYTES)
    return next(parts for parts in range(max(1, least), rows + 1) if rows % parts == 0)


class Identity(nn.Module):
    """A depthwise 1x1 convolution that does not change its input.

    ONNX Runtime fuses two neighbours into it: the preceding change of layout from tokens to the
    blocked map, and the following addition of a residual.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        shape = (width, 1, 1, 1)
        self.weight = parameter(LazyArray(shape, lambda: np.ones(shape, np.float32)))

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        return op.Conv(x, self.weight, kernel_shape=[1, 1], group=self.width)


Scanned = tuple[ir.Value, ir.DataType, Shape]
"""A value to scan along its first axis, its dtype, and the shape of a slice."""


def scan(
    op: Op,
    step: Callable[..., ir.Value],
    inputs: Sequence[Scanned],
    output: tuple[ir.DataType, Shape],
) -> ir.Value:
    """Run `step` on the slices of some inputs one after the other, and stack its outputs.

    Args:
        op: the op builder of the outer graph.
        step: builds the body from an op builder and a slice of each input.
        inputs: the values that are sliced along their first axis.
        output: dtype and shape of one step's output.

    Returns:
        The outputs of all steps along a new first axis.
    """

    def value(name: str, dtype: ir.DataType, shape: Shape) -> ir.Value:
        return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))

    body = op.builder.subgraph(
        step,
        [value(f"slice_{i}", dtype, shape) for i, (_, dtype, shape) in enumerate(inputs)],
        [value("step", *output)],
    )
    move_weights(op.builder.root.graph, body)
    # A body sees the names of the outer graph, so its own names must differ from those.
    for node in body:
        for result in node.outputs:
            result.name = f"scan.{result.name}"
    return op.Scan(*(scanned for scanned, _, _ in inputs), body=body, num_scan_inputs=len(inputs))


def move_weights(outer: ir.Graph, body: ir.Graph) -> None:
    """Move the weights that a subgraph reads from the outer graph into the subgraph.

    On a processor that needs uint8 weights, ONNX Runtime rewrites int8 weights when it opens a
    graph, but only those in the graph that holds the product. OpenVINO accepts a Scan only if its
    body reads no value of the outer graph.
    """
    own = {*body.inputs, *(result for node in body for result in node.outputs)}
    outside = {value for node in body for value in node.inputs if value and value not in own}
    for value in outside:
        assert isinstance(value, nn.Parameter), f"a Scan body reads {value.name} from outside"
        assert all(user.graph is body for user, _ in value.uses()), f"{value.name} is shared"
    # The order of the outer graph makes every export write the same bytes.
    for name in [name for name, value in outer.initializers.items() if value in outside]:
        body.register_initializer(outer.initializers.pop(name))
