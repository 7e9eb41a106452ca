"""A float32 graph in QDQ form: QuantizeLinear and DequantizeLinear around its products.

A provider with int8 kernels turns a product and the two DequantizeLinear before it into an int8
product. Other providers compute the same values in float32.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fastvlm_onnx.export.tensors.external_data import StoredTensor
from fastvlm_onnx.export.tensors.lazy_array import FloatArray, LazyArray
from fastvlm_onnx.export.tensors.quantized_weight import quantize_axis_lazily

# The axes of the output and of the input channels in the weight of each operator.
OUTPUT_AXIS: Final[Mapping[str, int]] = {"Conv": 0, "MatMul": 1}
INPUT_AXIS: Final[Mapping[str, int]] = {"Conv": 1, "MatMul": 0}
# The axes of an activation over which the extremes of each channel are taken.
POSITION_AXES: Final[Mapping[str, tuple[int, ...]]] = {"Conv": (0, 2, 3), "MatMul": (0, 1)}
# The operators whose weight and bias take the factors of their output's channels.
FACTOR_PRODUCERS: Final = ("Conv", "LayerNormalization")
# Channels are divided by the root of their largest magnitude, at most 16 times below the largest
# of all. Full equalisation is closer to float32 on the calibration's images, but clips channels
# that are small on all of them and large on an image in use: docs/benchmarks/qdq-search.md.
EQUALIZING_POWER: Final = 0.5
MOST_APART: Final = 16
# Ranges are wider than the extremes by this factor, for images that the calibration has not.
HEADROOM: Final = 1.25
LEVELS: Final = 255


@dataclass(frozen=True)
class ActivationRange:
    """The range of an activation that uint8 represents; zero is inside.

    Attributes:
        lowest: the smallest value, at most 0.
        highest: the largest value, at least 0.
        factors: float32 [channels], by which the channels were divided; None where they were not.
    """

    lowest: float
    highest: float
    factors: FloatArray | None = None

    @property
    def scale(self) -> NDArray[np.float32]:
        """The difference between two neighbouring values, float32 []."""
        width = self.highest - self.lowest
        return np.array(width / LEVELS if width > 0 else 1, np.float32)

    @property
    def zero_point(self) -> NDArray[np.uint8]:
        """The integer that represents zero, uint8 []."""
        return np.array(np.clip(np.rint(-self.lowest / self.scale), 0, LEVELS), np.uint8)


Ranges = Mapping[str, ActivationRange]
"""The range of each product's activation, by the name of the product's weight."""


def products_of(model: ir.Model) -> dict[str, ir.Node]:
    """Return the nodes that multiply an activation by a weight, by the weight's name."""
    found = {}
    for node in model.graph:
        weight = node.inputs[1] if node.op_type in OUTPUT_AXIS else None
        if weight is not None and weight.is_initializer():
            found[str(weight.name)] = node
    return found


def equalized_range(lowest: FloatArray, highest: FloatArray) -> ActivationRange:
    """Return the range of an activation whose channels are divided by factors.

    A factor is a root of the channel's largest magnitude, so that small channels use more levels.
    The factors have a geometric mean of 1.

    Args:
        lowest: the smallest value of each channel, at most 0, float32 [channels].
        highest: the largest value of each channel, at least 0, float32 [channels].
    """
    peaks = np.maximum(-lowest, highest)
    if not peaks.any():
        return ActivationRange(0, 0, np.ones_like(peaks))
    factors = np.maximum(peaks, peaks.max() / MOST_APART) ** EQUALIZING_POWER
    factors /= np.exp(np.log(factors).mean())
    low, high = (lowest / factors).min(), (highest / factors).max()
    return ActivationRange(HEADROOM * float(low), HEADROOM * float(high), factors)


def plain_range(lowest: FloatArray, highest: FloatArray) -> ActivationRange:
    """Return the range of an activation whose channels stay as they are; see `equalized_range`."""
    return ActivationRange(HEADROOM * float(lowest.min()), HEADROOM * float(highest.max()))


def foldable_products(model: ir.Model, names: Iterable[str]) -> list[str]:
    """Return the products whose activation comes straight from a layer with weight and bias.

    Such an activation's channels can be divided by factors at no cost: the layer before divides
    its weight and bias, and the product multiplies its weight.
    """
    nodes, found = products_of(model), []
    for name in names:
        producer = _producer(nodes[name])
        if (
            producer is not None
            and producer.op_type in FACTOR_PRODUCERS
            and len(producer.outputs[0].uses()) == 1
        ):
            found.append(name)
    return found


def _producer(node: ir.Node) -> ir.Node | None:
    """Return the node that computes the activation of a product."""
    x = node.inputs[0]
    return None if x is None else x.producer()


def fold_factors(model: ir.Model, names: Iterable[str], ranges: Ranges) -> ir.Model:
    """Divide the activations of foldable products by the factors of their ranges, in place.

    Args:
        model: a float32 graph whose weights are StoredTensors.
        names: the names that `foldable_products` returned.
        ranges: read when the graph is written.

    Returns:
        The same model.
    """
    nodes = products_of(model)
    for name in names:
        node = nodes[name]
        producer = _producer(node)
        assert producer is not None
        _scale(node.inputs[1], INPUT_AXIS[node.op_type], partial(_factors, ranges, name, 1))
        for parameter in producer.inputs[1:]:
            _scale(parameter, 0, partial(_factors, ranges, name, -1))
    return model


def _factors(ranges: Ranges, name: str, power: int) -> FloatArray:
    factors = ranges[name].factors
    assert factors is not None
    return np.asarray(factors if power == 1 else 1 / factors, np.float32)


def _scale(value: ir.Value | None, axis: int, factors: Callable[[], FloatArray]) -> None:
    """Multiply one axis of a weight by factors when the weight is read."""
    assert value is not None
    assert isinstance(value.const_value, StoredTensor)
    array = value.const_value.array
    along = [-1 if i == axis else 1 for i in range(len(array.shape))]
    value.const_value = StoredTensor(
        array.then(lambda a: a * factors().reshape(along), *array.shape)
    )


def quantize_products(model: ir.Model, names: Iterable[str], ranges: Ranges) -> ir.Model:
    """Quantise the weights and the activations of some products, in place.

    A weight becomes int8 with a scale for each output channel. An activation is rounded to uint8
    and back before its product. Biases stay float32.

    Args:
        model: a float32 graph whose weights are StoredTensors.
        names: the names of the products' weights.
        ranges: read when the graph is written.

    Returns:
        The same model.
    """
    nodes = products_of(model)
    for name in names:
        _quantize_weight(model.graph, nodes[name])
        _round_activation(model.graph, nodes[name], name, ranges)
    return model


def _quantize_weight(graph: ir.Graph, node: ir.Node) -> None:
    weight = node.inputs[1]
    assert weight is not None
    assert isinstance(weight.const_value, StoredTensor)
    name, axis = str(weight.name), OUTPUT_AXIS[node.op_type]
    quantized = quantize_axis_lazily(weight.const_value.array, axis)
    weight.const_value = StoredTensor(quantized.values, ir.DataType.INT8)
    scales = _initializer(graph, f"{name}_scale", quantized.scales, ir.DataType.FLOAT)
    # 1 is the default of the axis.
    back = ir.node("DequantizeLinear", [weight, scales], {} if axis == 1 else {"axis": axis})
    back.outputs[0].name = f"{name}_dequantized"
    graph.insert_before(node, back)
    node.replace_input_with(1, back.outputs[0])


def _round_activation(graph: ir.Graph, node: ir.Node, name: str, ranges: Ranges) -> None:
    prefix = f"{name.removesuffix('weight')}input"

    def constant(attribute: str, dtype: ir.DataType) -> ir.Value:
        array = LazyArray((), partial(_read, ranges, name, attribute))
        return _initializer(graph, f"{prefix}_{attribute}", array, dtype)

    pair = [constant("scale", ir.DataType.FLOAT), constant("zero_point", ir.DataType.UINT8)]
    there = ir.node("QuantizeLinear", [node.inputs[0], *pair])
    back = ir.node("DequantizeLinear", [there.outputs[0], *pair])
    there.outputs[0].name = f"{prefix}_quantized"
    back.outputs[0].name = f"{prefix}_dequantized"
    graph.insert_before(node, [there, back])
    node.replace_input_with(0, back.outputs[0])


def _read(ranges: Ranges, name: str, attribute: str) -> NDArray[Any]:
    found: NDArray[Any] = getattr(ranges[name], attribute)
    return found


def _initializer(graph: ir.Graph, name: str, array: LazyArray, dtype: ir.DataType) -> ir.Value:
    value = ir.Value(name=name, const_value=StoredTensor(array, dtype))
    graph.register_initializer(value)
    return value


def output_extremes(model: ir.Model, names: Iterable[str]) -> ir.Model:
    """Replace the outputs by the extremes of the products' activations, in place.

    Args:
        model: a float32 graph.
        names: the names of the products' weights.

    Returns:
        The same model. It has two outputs for each name, in the order of the names: the smallest
        and the largest value of each channel of the activation, float32 [channels].
    """
    graph, nodes = model.graph, products_of(model)
    graph.outputs.clear()
    axes = {
        op_type: ir.Value(name=f"positions_{op_type}", const_value=ir.tensor(list(positions)))
        for op_type, positions in POSITION_AXES.items()
    }
    for value in axes.values():
        graph.register_initializer(value)
    for name in names:
        product = nodes[name]
        x, positions = product.inputs[0], axes[product.op_type]
        for operator in ("ReduceMin", "ReduceMax"):
            node = ir.node(operator, [x, positions], {"keepdims": 0})
            output = node.outputs[0]
            output.name = f"{name}.{operator}"
            output.type, output.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([None])
            graph.append(node)
            graph.outputs.append(output)
    return model
