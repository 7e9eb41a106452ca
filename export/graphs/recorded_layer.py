"""One decoder layer in float32 as a graph of its own, up to its end or up to one product's input.

All layers of a decoder have the same graph: the weights are inputs of the graph.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from fastvlm_onnx.export.architecture.config import DecoderConfig
from fastvlm_onnx.export.graphs.decoder import DecoderLayer, DecoderOperators
from fastvlm_onnx.export.graphs.decoder_attention import LayerOutput
from fastvlm_onnx.export.graphs.decoder_precisions import (
    DECODER_PRECISIONS,
    DecoderPrecision,
    LinearFactory,
)
from fastvlm_onnx.export.graphs.layers import Graph, Op
from fastvlm_onnx.export.graphs.linear import FloatLinear
from fastvlm_onnx.export.tensors.external_data import StoredTensor
from fastvlm_onnx.export.tensors.lazy_array import LazyArray
from fastvlm_onnx.export.tensors.quantized_weight import CalibratedWeights
from fastvlm_onnx.export.tensors.weights import Weights
from fastvlm_onnx.names import BATCH_SIZE, PAST_SEQUENCE_LENGTH, SEQUENCE_LENGTH, past_names

HIDDEN_STATES: Final = "hidden_states"
NEXT_HIDDEN_STATES: Final = "next_hidden_states"
# The residual stream between attention and MLP.
RESIDUAL: Final = "residual"


class RecordedLinear(FloatLinear):
    """A linear layer in float32 that puts its input into a dict."""

    def __init__(
        self,
        weights: Sequence[LazyArray],
        bias: LazyArray | None = None,
        *,
        product: str,
        inputs: dict[str, ir.Value],
    ) -> None:
        super().__init__(weights, bias)
        self.product, self.inputs = product, inputs

    def forward(self, op: Op, x: ir.Value) -> list[ir.Value]:
        self.inputs[self.product] = x
        return super().forward(op, x)


@dataclass(frozen=True)
class RecordedPrecision(DecoderPrecision):
    """A float32 decoder whose products record their inputs.

    Attributes:
        inputs: the input of each product, once the graph is built.
    """

    inputs: dict[str, ir.Value] = field(default_factory=dict)

    def linear_of(
        self,
        layer: int,  # noqa: ARG002 (every layer is recorded in one way)
        product: str,
        calibrated: CalibratedWeights | None = None,  # noqa: ARG002
    ) -> LinearFactory:
        return partial(RecordedLinear, product=product, inputs=self.inputs)


@dataclass(frozen=True)
class RecordedLayer:
    """A decoder layer as a graph whose weights are inputs.

    Attributes:
        model: `hidden_states` float32 [1, sequence_length, hidden_size], an attention mask, an
            empty cache and the weights -> the outputs, float32 [1, sequence_length, width].
        weights: the weights by the names of the graph's inputs. A product's weight is [in, out].
        products: the name of each product's weight, by product.
    """

    model: ir.Model
    weights: dict[str, LazyArray]
    products: dict[str, str]


def build_recorded_layer(
    weights: Weights, config: DecoderConfig, outputs: Sequence[str] = (NEXT_HIDDEN_STATES,)
) -> RecordedLayer:
    """Build the graph of one layer.

    The graph has the nodes that the outputs need, and no others.

    Args:
        weights: the tensors of the layer.
        config: the decoder's sizes. The rotary tables have its context length.
        outputs: NEXT_HIDDEN_STATES, RESIDUAL, or names of `block_formats.PRODUCTS`, which stand for
            the inputs of these products.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    fp32 = DECODER_PRECISIONS["fp32"]
    precision = RecordedPrecision(None, fp32.lm_head)
    operators = DecoderOperators()
    module = DecoderLayer(weights, config, precision, 0, operators)
    module._set_name("layer")
    graph = Graph("decoder_layer", operators.opset)
    shape: list[int | str] = [BATCH_SIZE, SEQUENCE_LENGTH, config.hidden_size]
    hidden_states = graph.input(HIDDEN_STATES, ir.DataType.FLOAT, shape)
    inputs = operators.attention_inputs(graph, config, precision.cache_dtype, hidden_states)
    cache: list[int | str] = [
        BATCH_SIZE,
        config.num_key_value_heads,
        PAST_SEQUENCE_LENGTH,
        config.head_dim,
    ]
    key, value = (graph.input(name, ir.DataType.FLOAT, cache) for name in past_names(0))
    residual, update, _ = module(
        graph.op, hidden_states, None, (key, value), inputs, LayerOutput.ALL_POSITIONS
    )
    for output in outputs:
        if output == NEXT_HIDDEN_STATES:
            result = graph.op.Add(residual, update)
        elif output == RESIDUAL:
            result = graph.op.Identity(residual)
        else:
            result = graph.op.Identity(precision.inputs[output])
        graph.output(output, result, [BATCH_SIZE, SEQUENCE_LENGTH, f"width_of_{output}"])
    model = graph.finish()
    found: dict[str, LazyArray] = {}
    for name, initializer in list(model.graph.initializers.items()):
        tensor = initializer.const_value
        if name.startswith("layer.") and isinstance(tensor, StoredTensor):
            found[name] = tensor.array
            del model.graph.initializers[name]
            initializer.const_value = None
            initializer.type = ir.TensorType(ir.DataType.FLOAT)
            initializer.shape = ir.Shape(tensor.array.shape)
            model.graph.inputs.append(initializer)
    # ONNX Runtime would run every node.
    RemoveUnusedNodesPass()(model)
    suffixes = {product: f".{product}.weight" for product in precision.inputs}
    products = {
        product: next(name for name in found if name.endswith(suffix))
        for product, suffix in suffixes.items()
    }
    return RecordedLayer(model, found, products)
