"""Token embeddings as an ONNX graph, for runtimes that do not gather rows themselves."""

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from fastvlm_onnx.export.architecture.config import DecoderConfig
from fastvlm_onnx.export.graphs.layers import Graph, Op, parameter
from fastvlm_onnx.export.tensors.lazy_array import LazyArray
from fastvlm_onnx.export.tensors.quantization import INT8_BLOCK
from fastvlm_onnx.export.tensors.quantized_weight import quantize_blocks_lazily
from fastvlm_onnx.names import (
    BATCH_SIZE,
    EMBED_TOKENS,
    IMAGE_FEATURES,
    INPUT_IDS,
    INPUTS_EMBEDS,
    NUM_IMAGE_TOKENS,
    SEQUENCE_LENGTH,
)


class TokenEmbeddings(nn.Module):
    """Rows of the embedding matrix by token id."""

    def __init__(self, rows: LazyArray, dtype: ir.DataType) -> None:
        super().__init__()
        self.vocab_size, self.hidden_size = rows.shape
        self.dtype = dtype
        if dtype == ir.DataType.UINT8:
            blocks = quantize_blocks_lazily(rows, INT8_BLOCK, 8)
            self.weight = parameter(blocks.values, dtype)
            self.scales = parameter(blocks.scales)
        else:
            self.weight = parameter(rows, dtype)

    def forward(self, op: Op, token_ids: ir.Value) -> ir.Value:
        """Map int64 [B, N] to float32 [B, N, hidden_size]."""
        # The id after the vocabulary is an image's. Its row is replaced, so any row will do.
        token_ids = op.Min(token_ids, self.vocab_size - 1)
        found = op.Gather(self.weight, token_ids)
        if self.dtype == ir.DataType.FLOAT:
            return found
        found = op.Cast(found, to=ir.DataType.FLOAT)
        if self.dtype != ir.DataType.UINT8:
            return found
        scales = op.Unsqueeze(op.Gather(self.scales, token_ids), [-1])
        zero_point = op.Constant(value=ir.tensor(np.float32(128)))
        blocks = op.Mul(op.Sub(found, zero_point), scales)
        # The last block of a row may be padded.
        return op.Slice(op.Reshape(blocks, [0, 0, -1]), [0], [self.hidden_size], [-1])


def build_token_embeddings(
    rows: LazyArray,
    config: DecoderConfig,
    dtype: ir.DataType,
    *,
    image_token_id: int | None = None,
) -> ir.Model:
    """Build the graph from token ids to embeddings.

    Args:
        rows: the matrix, float32 [vocab_size, hidden_size].
        config: the decoder's sizes.
        dtype: the dtype in which the matrix is stored: FLOAT, FLOAT16, or UINT8 in blocks.
        image_token_id: put image features in the places of this id, in their order; the graph
            takes no image features when None.

    Returns:
        A graph from input_ids, int64 [B, N], and image_features, float32 [rows, hidden_size], to
        inputs_embeds, float32 [B, N, hidden_size]. There may be fewer features than places.
    """
    graph = Graph(EMBED_TOKENS)
    op = graph.op
    token_ids = graph.input(INPUT_IDS, ir.DataType.INT64, [BATCH_SIZE, SEQUENCE_LENGTH])
    embeddings = TokenEmbeddings(rows, dtype)
    embeddings._set_name(EMBED_TOKENS)
    embedded = embeddings(op, token_ids)
    if image_token_id is not None:
        features = graph.input(
            IMAGE_FEATURES, ir.DataType.FLOAT, [NUM_IMAGE_TOKENS, config.hidden_size]
        )
        places = op.Transpose(op.NonZero(op.Equal(token_ids, image_token_id)), perm=[1, 0])
        # A caller that gives no image gives features without rows.
        count = op.Shape(features, start=0, end=1)
        embedded = op.ScatterND(embedded, op.Slice(places, [0], count, [0]), features)
    shape: list[int | str] = [BATCH_SIZE, SEQUENCE_LENGTH, config.hidden_size]
    graph.output(INPUTS_EMBEDS, embedded, shape)
    return graph.finish()
