"""Building blocks with int8 weights: uint8 activations times int8 weights, float32 in and out.

Written for ONNX Runtime's CPU provider (com.microsoft operators). Weights have one scale per
output channel; activations one scale and zero point per tensor, found as it runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from fastvlm_onnx.export.graphs.layers import MICROSOFT, Op, Shape, parameter
from fastvlm_onnx.export.tensors.lazy_array import LazyArray
from fastvlm_onnx.export.tensors.quantized_weight import int8_columns


@dataclass(frozen=True)
class QuantizedActivation:
    """What DynamicQuantizeLinear gives: uint8 values, their scale and zero point."""

    values: ir.Value
    scale: ir.Value
    zero_point: ir.Value


def quantize_activation(op: Op, x: ir.Value) -> QuantizedActivation:
    """One scale for the whole tensor, to be shared by all products that read it."""
    return QuantizedActivation(*op.DynamicQuantizeLinear(x, _outputs=3))


class Int8Linear(nn.Module):  # type: ignore[misc]
    """x @ weight.T + bias over the last axis; `weight` is torch's [out, in]."""

    def __init__(self, weight: LazyArray, bias: LazyArray | None = None):
        super().__init__()
        columns = int8_columns(weight)
        self.weight = parameter(columns.values, ir.DataType.INT8)
        self.scale = parameter(columns.scales)
        self.bias = None if bias is None else parameter(bias)

    def register(self, op: Op) -> None:
        """Put the weights into this graph, so that a subgraph may use them under their names."""
        self(op, None)

    def forward(self, op: Op, x: ir.Value | QuantizedActivation | None) -> ir.Value | None:
        if x is None:
            return None
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
        # The bias belongs inside: BiasGelu after the product is slower than a plain Gelu.
        return op.DynamicQuantizeMatMul(
            x, self.weight, self.scale, None, self.bias, _domain=MICROSOFT
        )


def pointwise(weight: LazyArray) -> LazyArray:
    """A 1x1 convolution's weight [out, in, 1, 1] as a Linear's [out, in]."""
    out_size, in_size, *_ = weight.shape
    return weight.then(lambda w: w.reshape(out_size, in_size), out_size, in_size)


class Identity(nn.Module):  # type: ignore[misc]
    """A depthwise 1x1 convolution that changes nothing.

    ONNX Runtime folds into it what follows and what precedes: the addition of a residual, and the
    change of layout from tokens to the blocked map.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        shape = (width, 1, 1, 1)
        self.weight = parameter(LazyArray(shape, lambda: np.ones(shape, np.float32)))

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        return op.Conv(x, self.weight, kernel_shape=[1, 1], group=self.width)


Scanned = tuple[ir.Value, ir.DataType, Shape]


def scan(
    op: Op,
    step: Callable[..., ir.Value],
    inputs: Sequence[Scanned],
    output: tuple[ir.DataType, Shape],
) -> ir.Value:
    """Run `step` on one slice after another, and stack what it gives.

    Args:
        step: takes an op builder and a slice of each input.
        inputs: value, type, and shape of a slice.
        output: type and shape of what a step gives.
    """

    def value(name: str, dtype: ir.DataType, shape: Shape) -> ir.Value:
        return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))

    body = op.builder.subgraph(
        step,
        [value(f"slice_{i}", dtype, shape) for i, (_, dtype, shape) in enumerate(inputs)],
        [value("step", *output)],
    )
    move_weights(op.builder.root.graph, body)
    # Names of the body must not be those of the graph around it, which it sees.
    for node in body:
        for result in node.outputs:
            result.name = f"scan.{result.name}"
    return op.Scan(*(scanned for scanned, _, _ in inputs), body=body, num_scan_inputs=len(inputs))


def move_weights(outer: ir.Graph, body: ir.Graph) -> None:
    """Move the weights that a subgraph reads from the graph around it into the subgraph.

    Where a processor needs uint8 weights, ONNX Runtime rewrites int8 ones when it opens a graph. It
    looks for them only in the graph that holds the product. OpenVINO takes a Scan only where the
    body reads no outer value.
    """
    own = {*body.inputs, *(result for node in body for result in node.outputs)}
    outside = {value for node in body for value in node.inputs if value and value not in own}
    for value in outside:
        assert isinstance(value, nn.Parameter), f"a Scan body reads {value.name} from outside"
        assert all(user.graph is body for user, _ in value.uses()), f"{value.name} is shared"
    # In the order of the outer graph, so that an export gives the same bytes every time.
    for name in [name for name, value in outer.initializers.items() if value in outside]:
        body.register_initializer(outer.initializers.pop(name))
