"""Building blocks of the graphs: each takes tensors lazily and declares ONNX nodes.

Attribute names are the checkpoint's own, so the name of an initializer in a graph is the name of a
tensor in the checkpoint. Scales and shifts that follow a weight are folded into it in float32.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnxscript import GraphBuilder, nn

from fastvlm_onnx.export.tensors.external_data import StoredTensor
from fastvlm_onnx.export.tensors.lazy_array import FloatArray, LazyArray
from fastvlm_onnx.export.tensors.weights import Weights
from fastvlm_onnx.version import __version__

OPSET = 21
# The version of `--operators standard`: other engines than ONNX Runtime read it.
STANDARD_OPSET = 17
# The first version with Gelu.
GELU_OPSET = 20
MICROSOFT = "com.microsoft"
LAYER_NORM_EPS = 1e-5  # of FastViTHD's LayerNormChannel and BatchNorm2d

# onnxscript's op builder has a method for every operator's name, so it has no useful type.
Op = Any
Shape = Sequence[int | str]


def parameter(array: LazyArray, dtype: ir.DataType = ir.DataType.FLOAT) -> nn.Parameter:
    """Make an initializer whose values are computed when the graph is written."""
    return nn.Parameter(array.shape, data=StoredTensor(array, dtype))


def gelu(op: Op, x: ir.Value) -> ir.Value:
    """Exact GELU; before opset 20 in arithmetic, which ONNX Runtime fuses to the same operator."""
    if op.builder.graph.opset_imports[""] >= GELU_OPSET:
        return op.Gelu(x)
    return op.Mul(op.Mul(x, op.Add(op.Erf(op.Div(x, math.sqrt(2))), 1.0)), 0.5)


def register_parameters(op: Op, module: nn.Module) -> None:
    """Add a module's parameters to the graph as initializers, without adding any node.

    onnxscript registers the parameters of a module when the module is first called. It names them
    after the modules whose calls the outer graph's builder has seen. A module that is called only
    in the body of a Scan is not among these, so its name would be missing from its parameters'
    names. Such a module is registered before the Scan is built.

    Args:
        op: the op builder of the outer graph.
        module: a module without submodules.
    """
    builder = op.builder
    builder.push_module(module.name or "", type(module).__qualname__)
    try:
        for each in module.parameters(recurse=False):
            each._realize(builder)  # as nn.Module.__call__ does
    finally:
        builder.pop_module()


class Conv2d(nn.Module):
    """Convolution over [B, C, H, W], padded with `kernel // 2` zeros on every side."""

    def __init__(self, weight: LazyArray, bias: LazyArray, *, stride: int = 1, groups: int = 1):
        super().__init__()
        self.weight = parameter(weight)
        self.bias = parameter(bias)
        self.kernel, self.stride, self.groups = weight.shape[-1], stride, groups

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        return op.Conv(
            x,
            self.weight,
            self.bias,
            kernel_shape=[self.kernel] * 2,
            strides=[self.stride] * 2,
            pads=[self.kernel // 2] * 4,
            group=self.groups,
        )


def read_conv(
    weights: Weights,
    in_width: int,
    out_width: int,
    kernel: int,
    *,
    stride: int = 1,
    groups: int = 1,
) -> Conv2d:
    """Read a convolution as the checkpoint stores it."""
    return Conv2d(
        weights.take("weight", out_width, in_width // groups, kernel, kernel),
        weights.take("bias", out_width),
        stride=stride,
        groups=groups,
    )


def split_filters(
    weights: Weights, in_width: int, out_width: int, kernel: int, *, stride: int = 1
) -> tuple[Conv2d, Conv2d]:
    """Read a grouped convolution with two filters for each channel as two depthwise ones."""
    weight = weights.take("weight", out_width, 1, kernel, kernel)
    bias = weights.take("bias", out_width)

    def half(first: int) -> Conv2d:
        return Conv2d(
            weight.then(lambda w: w[first::2], in_width, 1, kernel, kernel),
            bias.then(lambda b: b[first::2], in_width),
            stride=stride,
            groups=in_width,
        )

    return half(0), half(1)


def even_then_odd_columns(weight: FloatArray) -> FloatArray:
    return np.concatenate([weight[:, 0::2], weight[:, 1::2]], axis=1)


def fold_batch_norm(weights: Weights, width: int, kernel: int) -> Conv2d:
    """Read a depthwise convolution without bias, and fold the following BatchNorm into it.

    Source: BatchNorm2d in eval mode, where the running statistics are constants.
    """
    conv = weights.take("conv.weight", width, 1, kernel, kernel)
    gamma, beta, mean, variance = (
        weights.take(f"bn.{name}", width)
        for name in ("weight", "bias", "running_mean", "running_var")
    )

    def scale() -> FloatArray:
        return gamma.read() / np.sqrt(variance.read() + np.float32(LAYER_NORM_EPS))

    return Conv2d(
        conv.then(lambda w: w * scale()[:, None, None, None], *conv.shape),
        beta.then(lambda b: b - mean.read() * scale(), width),
        groups=width,
    )


class MatMul(nn.Module):
    """x @ weight + bias over the last axis; `weight` is [in, out], torch's weight transposed."""

    def __init__(self, weight: LazyArray, bias: LazyArray | None = None):
        super().__init__()
        self.weight = parameter(weight)
        self.bias = None if bias is None else parameter(bias)

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        product = op.MatMul(x, self.weight)
        return product if self.bias is None else op.Add(product, self.bias)


class Graph:
    """A graph under construction: add inputs, then nodes by `op`, then outputs."""

    def __init__(self, name: str, opset: int = OPSET) -> None:
        imports = {"": opset, MICROSOFT: 1}
        self._graph = ir.Graph(inputs=[], outputs=[], nodes=[], name=name, opset_imports=imports)
        self._builder = GraphBuilder(self._graph)
        self.op: Op = self._builder.op

    def input(self, name: str, dtype: ir.DataType, shape: Shape) -> ir.Value:
        return self._builder.input(name, dtype, shape)

    def output(
        self, name: str, value: ir.Value, shape: Shape, dtype: ir.DataType = ir.DataType.FLOAT
    ) -> None:
        """Declare an output with its shape and dtype."""
        value.type = ir.TensorType(dtype)
        value.shape = ir.Shape(shape)
        self._builder.add_output(value, name)

    def finish(self) -> ir.Model:
        """Return the graph as a model, without value_info and without default attributes.

        The tract runtime refuses value_info with symbolic axes. Some runtimes do not know every
        attribute of an operator's specification.
        """
        for node in self._graph.all_nodes():
            node.metadata_props.clear()  # onnxscript's names of modules and classes
            remove_default_attributes(node, self._graph.opset_imports)
            for value in node.outputs:
                if not value.is_graph_output():
                    value.type = value.shape = None
        for graph in (self._graph, *self._graph.subgraphs()):
            for value in graph.initializers.values():
                value.type = value.shape = None  # the tensor has both
        if not any(node.domain == MICROSOFT for node in self._graph.all_nodes()):
            del self._graph.opset_imports[MICROSOFT]
        # An engine that knows the operators knows the least IR version that has them.
        imports = [onnx.helper.make_opsetid(*pair) for pair in self._graph.opset_imports.items()]
        return ir.Model(
            self._graph,
            ir_version=onnx.helper.find_min_ir_version_for(imports, ignore_unknown=True),
            producer_name="fastvlm-onnx",
            producer_version=__version__,
        )


def remove_default_attributes(node: ir.Node, opset_imports: Mapping[str, int]) -> None:
    """Remove the attributes whose value is the default of the operator's specification."""
    if node.domain:
        return  # onnx has specifications of its own operators only
    attributes = onnx.defs.get_schema(node.op_type, opset_imports[""]).attributes
    for name, value in list(node.attributes.items()):
        default = attributes[name].default_value
        stated = np.float32(value.value) if value.type == ir.AttributeType.FLOAT else value.value
        if default.type and ir.serde.deserialize_attribute(default).value == stated:
            del node.attributes[name]
