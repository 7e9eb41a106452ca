"""The decoder's attention over its KV cache, as com.microsoft GroupQueryAttention.

The operator applies the rotary embedding and appends new keys and values to a buffer that the
runtime owns.

Source: Qwen2 (arXiv 2407.10671); transformers 4.48.3 modeling_qwen2.py.
"""

from enum import Enum, auto
from typing import Final

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from fastvlm_onnx.export.architecture.config import DecoderConfig
from fastvlm_onnx.export.graphs.decoder_precisions import LinearFactory
from fastvlm_onnx.export.graphs.layers import MICROSOFT, Graph, Op, parameter
from fastvlm_onnx.export.tensors.lazy_array import FloatArray, LazyArray, stacked
from fastvlm_onnx.export.tensors.weights import Weights
from fastvlm_onnx.names import ATTENTION_MASK, BATCH_SIZE, TOTAL_SEQUENCE_LENGTH

# The logit of a sink: its exponential is zero beside that of any score.
NO_WEIGHT: Final = -1e30

KeyValue = tuple[ir.Value, ir.Value]
"""Keys and values of one layer, each [B, num_key_value_heads, positions, head_dim]."""


class LayerOutput(Enum):
    """The part of a layer's output that the rest of the graph reads."""

    ALL_POSITIONS = auto()
    LAST_POSITION = auto()


class Attention(nn.Module):
    """Grouped-query attention over the cache; one product gives queries, keys and values."""

    def __init__(
        self,
        weights: Weights,
        config: DecoderConfig,
        qkv_linear: LinearFactory,
        o_linear: LinearFactory,
    ) -> None:
        super().__init__()
        self.config = config
        kv_width = config.num_key_value_heads * config.head_dim
        q_width = config.num_attention_heads * config.head_dim
        widths = {"q_proj": q_width, "k_proj": kv_width, "v_proj": kv_width}
        qkv = [
            weights.take(f"{name}.weight", width, config.hidden_size)
            for name, width in widths.items()
        ]
        bias = [weights.take(f"{name}.bias", width) for name, width in widths.items()]
        self.qkv_proj = qkv_linear([stacked(qkv)], stacked(bias))
        self.o_proj = o_linear([weights.take("o_proj.weight", config.hidden_size, q_width)])

    def forward(
        self, op: Op, x: ir.Value, past: KeyValue, inputs: "AttentionInputs", output: LayerOutput
    ) -> tuple[ir.Value, KeyValue]:
        """Return the update of the residual stream, and present keys and values.

        Args:
            x: float32 [B, sequence_length, hidden_size], normalised.
            past: the layer's cache before this run.
            inputs: the inputs that all layers share.
            output: the part of the output to compute.
        """
        (qkv,) = self.qkv_proj(op, x)
        mixed, key, value = self.attend(op, inputs.cast(op, qkv), past, inputs)
        if output is LayerOutput.LAST_POSITION:
            mixed = last_position(op, mixed)
        (update,) = self.o_proj(op, inputs.cast_back(op, mixed))
        return update, (key, value)

    def attend(
        self, op: Op, qkv: ir.Value, past: KeyValue, inputs: "AttentionInputs"
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Return the attention's output [B, sequence_length, heads * head_dim], key and value.

        Args:
            qkv: queries, keys and values side by side in the last axis.
            past: the layer's cache before this run.
            inputs: the inputs that all layers share.
        """
        return op.GroupQueryAttention(
            qkv,
            None,
            None,
            *past,
            inputs.seqlens_k,
            inputs.total_sequence_length,
            inputs.cos,
            inputs.sin,
            *((None, None, inputs.sink) if inputs.sink is not None else ()),
            num_heads=self.config.num_attention_heads,
            kv_num_heads=self.config.num_key_value_heads,
            do_rotary=1,
            rotary_interleaved=0,
            _domain=MICROSOFT,
            _outputs=3,
        )


def last_position(op: Op, x: ir.Value) -> ir.Value:
    """Cut [B, sequence_length, width] to its last position, [B, 1, width]."""
    return op.Slice(x, [-1], [np.iinfo(np.int64).max], [1])


class AttentionInputs:
    """Inputs of attention that all layers share: lengths, rotary tables, and the cache's dtype.

    With `avoids_tiling`, every head has a sink whose weight is zero. It changes no result, and
    ONNX Runtime's tiled kernel, which is slower on the CPU at the lengths of a prompt with an
    image, does not take attention with a sink.

    Attributes:
        config: the decoder's sizes.
        dtype: the dtype of keys and values.
        inputs_embeds: float32 [B, sequence_length, hidden_size].
        cos: the cosine table of the rotary embedding, [context, head_dim / 2].
        sin: the sine table, of the same shape.
        sink: the logit of each head's sink, [num_attention_heads]; None without sinks.
        seqlens_k: int32 [B], the number of valid positions less one.
        total_sequence_length: int32 scalar, the length of the attention mask.
    """

    def __init__(
        self,
        graph: Graph,
        config: DecoderConfig,
        dtype: ir.DataType,
        inputs_embeds: ir.Value,
        *,
        avoids_tiling: bool = False,
    ) -> None:
        op, self.config, self.dtype = graph.op, config, dtype
        self.inputs_embeds = inputs_embeds
        mask = graph.input(ATTENTION_MASK, ir.DataType.INT64, [BATCH_SIZE, TOTAL_SEQUENCE_LENGTH])
        self.cos, self.sin = (
            op.initializer(parameter(table, self.arithmetic_dtype).const_value, name)
            for name, table in zip(("cos_cache", "sin_cache"), rotary_tables(config), strict=True)
        )
        self.sink = None
        if avoids_tiling:
            shape = (config.num_attention_heads,)
            sink = LazyArray(shape, lambda: np.full(shape, NO_WEIGHT, np.float32))
            self.sink = op.initializer(parameter(sink, dtype).const_value, "head_sink")
        self.read_mask(op, mask)

    @property
    def arithmetic_dtype(self) -> ir.DataType:
        """The dtype that attention computes in: the cache's, unless an operator set has another."""
        return self.dtype

    def read_mask(self, op: Op, mask: ir.Value) -> None:
        """Compute what the attention operator takes instead of the mask.

        Args:
            op: the op builder.
            mask: int64 [B, total_sequence_length], ones where a position counts.
        """
        valid = op.ReduceSum(mask, [1], keepdims=0)
        total = op.Shape(mask, start=1, end=2)
        self.seqlens_k = op.Cast(op.Sub(valid, 1), to=ir.DataType.INT32)
        self.total_sequence_length = op.Cast(op.Squeeze(total, [0]), to=ir.DataType.INT32)

    def cast(self, op: Op, x: ir.Value) -> ir.Value:
        """Cast float32 to the dtype that attention computes in."""
        dtype = self.arithmetic_dtype
        return x if dtype == ir.DataType.FLOAT else op.Cast(x, to=dtype)

    def cast_back(self, op: Op, x: ir.Value) -> ir.Value:
        """Cast the dtype that attention computes in to float32."""
        is_float32 = self.arithmetic_dtype == ir.DataType.FLOAT
        return x if is_float32 else op.Cast(x, to=ir.DataType.FLOAT)


def rotary_tables(config: DecoderConfig) -> tuple[LazyArray, LazyArray]:
    """Return cos and sin of position * rope_theta^(-2i / head_dim), [context, head_dim / 2]."""
    half = config.head_dim // 2

    def angles() -> FloatArray:
        # transformers' Qwen2RotaryEmbedding computes in float32; float64 would give other tables
        # at distant positions.
        exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
        frequencies = np.float32(1) / np.float32(config.rope_theta) ** exponents
        positions = np.arange(config.max_position_embeddings, dtype=np.float32)
        table: FloatArray = positions[:, None] * frequencies.astype(np.float32)[None]
        return table

    shape = (config.max_position_embeddings, half)
    return LazyArray(shape, lambda: np.cos(angles())), LazyArray(shape, lambda: np.sin(angles()))
