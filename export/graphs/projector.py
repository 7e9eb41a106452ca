"""The projector as an ONNX graph: image_hidden_states -> image_features (mlp2x_gelu)."""

from typing import Final

import onnx_ir as ir

from fastvlm_onnx.export.architecture.config import FastVLMConfig
from fastvlm_onnx.export.graphs.layers import OPSET, Graph, MatMul, Op, gelu
from fastvlm_onnx.export.graphs.layers_int8 import Int8Linear
from fastvlm_onnx.export.tensors.lazy_array import transposed
from fastvlm_onnx.export.tensors.weights import Weights
from fastvlm_onnx.names import (
    BATCH_SIZE,
    IMAGE_FEATURES,
    IMAGE_HIDDEN_STATES,
    NUM_IMAGE_TOKENS,
    PROJECTOR,
)

MODULE: Final = "mm_projector"
"""The tensors' names in every graph begin so."""


def build_projector(
    weights: Weights, config: FastVLMConfig, *, is_int8: bool = False, opset: int = OPSET
) -> ir.Model:
    """Build the projector: Linear, exact GELU, Linear.

    Args:
        weights: the checkpoint under PROJECTOR_PREFIX.
        config: the sizes of the whole model.
        is_int8: multiply in int8 instead of float32.
        opset: the version of ONNX's own operators.

    Returns:
        A graph from float32 [B, N, vision hidden_size] to float32 [B, N, decoder hidden_size].

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    graph = Graph(PROJECTOR, opset)
    in_size, out_size = config.vision.hidden_size, config.decoder.hidden_size
    x = graph.input(IMAGE_HIDDEN_STATES, ir.DataType.FLOAT, [BATCH_SIZE, NUM_IMAGE_TOKENS, in_size])
    features = project(graph.op, weights, config, x, is_int8=is_int8)
    graph.output(IMAGE_FEATURES, features, [BATCH_SIZE, NUM_IMAGE_TOKENS, out_size])
    return graph.finish()


def project(
    op: Op, weights: Weights, config: FastVLMConfig, x: ir.Value, *, is_int8: bool
) -> ir.Value:
    """Map hidden states [B, N, vision hidden_size] to features [B, N, decoder hidden_size]."""
    in_size, out_size = config.vision.hidden_size, config.decoder.hidden_size

    def linear(name: str, width: int) -> MatMul | Int8Linear:
        scope = weights / name
        weight, bias = scope.take("weight", out_size, width), scope.take("bias", out_size)
        layer = Int8Linear(weight, bias) if is_int8 else MatMul(transposed(weight), bias)
        layer._set_name(f"{MODULE}.{name}")
        return layer

    return linear("2", out_size)(op, gelu(op, linear("0", in_size)(op, x)))
