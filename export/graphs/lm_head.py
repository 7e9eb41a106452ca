"""lm_head as graphs of its own: all logits in int8, and the likeliest tokens found in int4.

A token needs all of lm_head's weights, which are a third of the bytes that an int4 decoder reads.
Where only the largest logit is needed, int4 weights find the tokens that can have it, and int8
weights give the logits of these. The runtime compares the two (runtime/engine/lm_head.py).
"""

import numpy as np
import onnx_ir as ir

from fastvlm_onnx.export.architecture.config import DecoderConfig
from fastvlm_onnx.export.graphs.decoder import lm_head_rows
from fastvlm_onnx.export.graphs.decoder_int8 import LARGEST_INTEGER, SMALLEST_PEAK
from fastvlm_onnx.export.graphs.layers import Graph, Op, register_parameters
from fastvlm_onnx.export.graphs.linear import MatMulNBits
from fastvlm_onnx.export.tensors.quantization import INT4_BLOCK, INT8_BLOCK
from fastvlm_onnx.export.tensors.weights import Weights
from fastvlm_onnx.names import (
    BATCH_SIZE,
    HIDDEN_STATES,
    LM_HEAD,
    LM_HEAD_SCREEN,
    LOGITS,
    NUM_CANDIDATES,
    SCREENED_LOGITS,
    TOKEN_IDS,
    TOKEN_LOGITS,
)


def build_lm_head(weights: Weights, config: DecoderConfig) -> ir.Model:
    """Build lm_head in int8: hidden_states [B, 1, hidden_size] -> logits [B, 1, vocab_size].

    Args:
        weights: the checkpoint at its root.
        config: the decoder's sizes.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    graph = Graph(LM_HEAD)
    head = MatMulNBits(lm_head_rows(weights, config), INT8_BLOCK, 8)
    head._set_name(LM_HEAD)
    logits = head(graph.op, _hidden_states(graph, config))
    graph.output(LOGITS, logits, [BATCH_SIZE, 1, config.vocab_size])
    return graph.finish()


def build_lm_head_screen(weights: Weights, config: DecoderConfig) -> ir.Model:
    """Build the screen: hidden_states [B, 1, hidden_size] -> the likeliest tokens and their logits.

    The number of these tokens is an input: num_candidates, int64 [1].

    Args:
        weights: the checkpoint at its root.
        config: the decoder's sizes.

    Returns:
        A graph with three outputs [B, 1, num_candidates]: token_ids int64, in no order;
        token_logits float32, the logits of lm_head in int8; screened_logits float32, in int4.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    graph = Graph(LM_HEAD_SCREEN)
    op, rows = graph.op, lm_head_rows(weights, config)
    hidden_states = _hidden_states(graph, config)
    count = graph.input(NUM_CANDIDATES, ir.DataType.INT64, [1])
    screen = MatMulNBits(rows, INT4_BLOCK, 4)
    screen._set_name(LM_HEAD_SCREEN)
    screened, tokens = op.TopK(
        screen(op, hidden_states), count, axis=-1, sorted=0, _outputs=[SCREENED_LOGITS, TOKEN_IDS]
    )
    head = MatMulNBits(rows, INT8_BLOCK, 8)
    head._set_name(LM_HEAD)
    register_parameters(op, head)
    column = op.Unsqueeze(rounded_input(op, hidden_states, head), [-1])
    logits = op.Squeeze(op.MatMul(head.rows(op, tokens), column), [-1])
    shape: list[int | str] = [BATCH_SIZE, 1, NUM_CANDIDATES]
    graph.output(TOKEN_IDS, tokens, shape, ir.DataType.INT64)
    graph.output(TOKEN_LOGITS, logits, shape)
    graph.output(SCREENED_LOGITS, screened, shape)
    return graph.finish()


def rounded_input(op: Op, x: ir.Value, product: MatMulNBits) -> ir.Value:
    """Round x [B, 1, in] as MatMulNBits does: to int8, with a scale for each block of a row."""
    padding = -product.in_size % product.block_size
    padded = op.Pad(x, [0, 0, 0, 0, 0, padding]) if padding else x
    blocks = op.Reshape(padded, [0, 0, -1, product.block_size])
    # As Python numbers, these would become casts in the graph.
    smallest = op.Constant(value=ir.tensor(np.float32(SMALLEST_PEAK)))
    largest = op.Constant(value=ir.tensor(np.float32(LARGEST_INTEGER)))
    peak = op.Max(op.ReduceMax(op.Abs(blocks), [-1], keepdims=1), smallest)
    # The kernel multiplies by 127 / peak. A division by peak / 127 would round some ties apart.
    rounded = op.Mul(op.Round(op.Mul(blocks, op.Div(largest, peak))), op.Div(peak, largest))
    return op.Slice(op.Reshape(rounded, [0, 0, -1]), [0], [product.in_size], [-1])


def _hidden_states(graph: Graph, config: DecoderConfig) -> ir.Value:
    return graph.input(HIDDEN_STATES, ir.DataType.FLOAT, [BATCH_SIZE, 1, config.hidden_size])
