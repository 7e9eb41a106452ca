"""Qwen2 with its KV cache as an ONNX graph: inputs_embeds -> logits of the last position.

Attention is com.microsoft GroupQueryAttention, which rotates queries and keys itself and writes new
keys and values into a buffer that the runtime owns.

Source: Qwen2 (arXiv 2407.10671); transformers 4.48.3 modeling_qwen2.py.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from fastvlm_onnx.export.architecture.config import DecoderConfig
from fastvlm_onnx.export.architecture.tensor_names import EMBED_TOKENS, LM_HEAD
from fastvlm_onnx.export.graphs.decoder_precisions import FORMS, Projections
from fastvlm_onnx.export.graphs.layers import MICROSOFT, OPSET, Graph, Op, parameter
from fastvlm_onnx.export.tensors.lazy_array import FloatArray, LazyArray, stacked
from fastvlm_onnx.export.tensors.weights import Weights
from fastvlm_onnx.names import (
    ATTENTION_MASK,
    BATCH_SIZE,
    DECODER,
    INPUTS_EMBEDS,
    LOGITS,
    PAST_SEQUENCE_LENGTH,
    SEQUENCE_LENGTH,
    TOTAL_SEQUENCE_LENGTH,
    past_names,
    present_names,
)

Cached = tuple[ir.Value, ir.Value]
"""Keys and values of one layer."""
# What of a layer's output is wanted: every position, the last one, or its keys and values alone.
Part = Literal["all", "last position", "cache"]


class RMSNorm(nn.Module):  # type: ignore[misc]
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""

    def __init__(self, weights: Weights, width: int, eps: float) -> None:
        super().__init__()
        self.weight = parameter(weights.take("weight", width))
        self.eps = eps

    def forward(
        self, op: Op, x: ir.Value, residual: ir.Value | None = None
    ) -> tuple[ir.Value, ir.Value]:
        """The norm of x, or of x + residual, and what was normalised."""
        if residual is None:
            # Standard operators, in the form that ONNX Runtime fuses into one.
            mean = op.ReduceMean(op.Pow(x, 2.0), [-1], keepdims=1)
            return op.Mul(op.Div(x, op.Sqrt(op.Add(mean, self.eps))), self.weight), x
        unused = [ir.Value(name=""), ir.Value(name="")]
        normalized, _, _, total = op.SkipSimplifiedLayerNormalization(
            x,
            residual,
            self.weight,
            epsilon=self.eps,
            _domain=MICROSOFT,
            _outputs=["normalized", *unused, "sum"],
        )
        return normalized, total


class Attention(nn.Module):  # type: ignore[misc]
    """Grouped-query attention over the cache; queries, keys and values from one product."""

    def __init__(self, weights: Weights, config: DecoderConfig, projection: Projections) -> None:
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
        self.qkv_proj = projection([stacked(qkv)], stacked(bias))
        self.o_proj = projection([weights.take("o_proj.weight", config.hidden_size, q_width)])

    def forward(
        self, op: Op, x: ir.Value, past: Cached, cache: "CacheInputs", part: Part
    ) -> tuple[ir.Value | None, Cached]:
        """The update of the residual stream, unless nobody wants it; then key and value."""
        (qkv,) = self.qkv_proj(op, x)
        mixed, key, value = self.attend(op, cache.cast(op, qkv), past, cache)
        if part == "cache":
            return None, (key, value)
        if part == "last position":
            mixed = last_position(op, mixed)
        (update,) = self.o_proj(op, cache.cast_back(op, mixed))
        return update, (key, value)

    def attend(
        self, op: Op, qkv: ir.Value, past: Cached, cache: "CacheInputs"
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Values mixed over all positions, [B, sequence_length, heads * head_dim]; key, value."""
        return op.GroupQueryAttention(
            qkv,
            None,
            None,
            *past,
            cache.seqlens_k,
            cache.total_sequence_length,
            cache.cos,
            cache.sin,
            num_heads=self.config.num_attention_heads,
            kv_num_heads=self.config.num_key_value_heads,
            do_rotary=1,
            rotary_interleaved=0,
            _domain=MICROSOFT,
            _outputs=3,
        )


class MLP(nn.Module):  # type: ignore[misc]
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, weights: Weights, config: DecoderConfig, projection: Projections) -> None:
        super().__init__()
        wide, narrow = config.intermediate_size, config.hidden_size
        self.gate_up_proj = projection(
            [weights.take(f"{name}_proj.weight", wide, narrow) for name in ("gate", "up")]
        )
        self.down_proj = projection([weights.take("down_proj.weight", narrow, wide)])

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        gate, up = self.gate_up_proj(op, x)
        (down,) = self.down_proj(op, op.Mul(op.Mul(gate, op.Sigmoid(gate)), up))
        return down


class DecoderLayer(nn.Module):  # type: ignore[misc]
    def __init__(
        self,
        weights: Weights,
        config: DecoderConfig,
        attention_projection: Projections,
        projection: Projections,
        operators: "Operators",
    ) -> None:
        super().__init__()
        eps, width = config.rms_norm_eps, config.hidden_size
        norm = operators.norm
        self.input_layernorm = norm(weights / "input_layernorm", width, eps)
        self.self_attn = operators.attention(weights / "self_attn", config, attention_projection)
        self.post_attention_layernorm = norm(weights / "post_attention_layernorm", width, eps)
        self.mlp = MLP(weights / "mlp", config, projection)

    def forward(
        self,
        op: Op,
        residual: ir.Value,
        update: ir.Value | None,
        past: Cached,
        cache: "CacheInputs",
        part: Part,
    ) -> tuple[ir.Value, ir.Value | None, Cached]:
        """Returns residual and update, which the next norm adds; then key and value."""
        if update is None:
            normalized, residual = self.input_layernorm(op, residual)
        else:
            normalized, residual = self.input_layernorm(op, update, residual)
        mixed, present = self.self_attn(op, normalized, past, cache, part)
        if mixed is None:
            return residual, None, present
        if part == "last position":
            residual = last_position(op, residual)
        normalized, residual = self.post_attention_layernorm(op, mixed, residual)
        return residual, self.mlp(op, normalized), present


def last_position(op: Op, x: ir.Value) -> ir.Value:
    """[B, sequence_length, width] -> [B, 1, width]."""
    return op.Slice(x, [-1], [np.iinfo(np.int64).max], [1])


class CacheInputs:
    """What GroupQueryAttention needs to know besides the cache: lengths, and rotary tables."""

    def __init__(
        self, graph: Graph, config: DecoderConfig, dtype: ir.DataType, inputs_embeds: ir.Value
    ) -> None:
        op, self.dtype, self.inputs_embeds = graph.op, dtype, inputs_embeds
        mask = graph.input(ATTENTION_MASK, ir.DataType.INT64, [BATCH_SIZE, TOTAL_SEQUENCE_LENGTH])
        self.cos, self.sin = (
            op.initializer(parameter(table, dtype).const_value, name)
            for name, table in zip(("cos_cache", "sin_cache"), rotary_tables(config), strict=True)
        )
        valid = op.ReduceSum(mask, [1], keepdims=0)
        self.read_lengths(op, valid, op.Shape(mask, start=1, end=2))

    def read_lengths(self, op: Op, valid: ir.Value, total: ir.Value) -> None:
        """What attention asks for.

        Args:
            valid: int64 [B], each sequence's length without its padding.
            total: int64 [1], with it.
        """
        self.seqlens_k = op.Cast(op.Sub(valid, 1), to=ir.DataType.INT32)
        self.total_sequence_length = op.Cast(op.Squeeze(total, [0]), to=ir.DataType.INT32)

    def cast(self, op: Op, x: ir.Value) -> ir.Value:
        """float32 -> what the cache holds."""
        return x if self.dtype == ir.DataType.FLOAT else op.Cast(x, to=self.dtype)

    def cast_back(self, op: Op, x: ir.Value) -> ir.Value:
        return x if self.dtype == ir.DataType.FLOAT else op.Cast(x, to=ir.DataType.FLOAT)


def rotary_tables(config: DecoderConfig) -> tuple[LazyArray, LazyArray]:
    """cos and sin of position * rope_theta^(-2i / head_dim), float32 [context, head_dim / 2]."""
    half = config.head_dim // 2

    def angles() -> FloatArray:
        # In float32 like transformers' Qwen2RotaryEmbedding, so that far positions agree too.
        exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
        frequencies = np.float32(1) / np.float32(config.rope_theta) ** exponents
        positions = np.arange(config.max_position_embeddings, dtype=np.float32)
        table: FloatArray = positions[:, None] * frequencies.astype(np.float32)[None]
        return table

    shape = (config.max_position_embeddings, half)
    return LazyArray(shape, lambda: np.cos(angles())), LazyArray(shape, lambda: np.sin(angles()))


@dataclass(frozen=True)
class Operators:
    """The building blocks that are not made of plain arithmetic, and the opset they need."""

    norm: type[RMSNorm] = RMSNorm
    attention: type[Attention] = Attention
    cache_inputs: type[CacheInputs] = CacheInputs
    opset: int = OPSET


def build_decoder(
    weights: Weights,
    config: DecoderConfig,
    producer_version: str,
    precision: str = "fp32",
    *,
    operators: Operators = Operators(),
    fills_cache_only: bool = False,
) -> ir.Model:
    """inputs_embeds and the cache -> logits [B, 1, vocab_size] of the last position, and the cache.

    Args:
        weights: the checkpoint at its root: `model.layers...`, `model.norm`, `lm_head`.
        precision: one of FORMS.
        fills_cache_only: leave out the logits, and what only they need.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    form = FORMS[precision]
    model = weights / "model"
    layers = nn.ModuleList(
        [
            DecoderLayer(
                model / f"layers.{i}",
                config,
                form.attention_projection(i),
                form.projection,
                operators,
            )
            for i in range(config.num_hidden_layers)
        ]
    )
    layers._set_name("layers")

    graph = Graph(DECODER, operators.opset)
    op = graph.op
    residual = graph.input(
        INPUTS_EMBEDS, ir.DataType.FLOAT, [BATCH_SIZE, SEQUENCE_LENGTH, config.hidden_size]
    )
    cache = operators.cache_inputs(graph, config, form.cache_dtype, residual)
    heads: list[str | int] = [BATCH_SIZE, config.num_key_value_heads]
    update = None
    presents: list[Cached] = []
    for i, layer in enumerate(layers):
        shape = [*heads, PAST_SEQUENCE_LENGTH, config.head_dim]
        key_name, value_name = past_names(i)
        past = (
            graph.input(key_name, form.cache_dtype, shape),
            graph.input(value_name, form.cache_dtype, shape),
        )
        is_last = i == config.num_hidden_layers - 1
        # Only the last position's logits are wanted: the rest of the last layer needs one row.
        part: Part = "cache" if fills_cache_only else "last position"
        residual, update, present = layer(
            op, residual, update, past, cache, part if is_last else "all"
        )
        presents.append(present)
    if not fills_cache_only:
        norm = operators.norm(model / "norm", config.hidden_size, config.rms_norm_eps)
        norm._set_name("norm")
        lm_head = form.lm_head(lm_head_rows(weights, config))
        lm_head._set_name("lm_head")
        hidden, _ = norm(op, update, residual)
        graph.output(LOGITS, lm_head(op, hidden), [BATCH_SIZE, 1, config.vocab_size])
    for i, present in enumerate(presents):
        for name, value in zip(present_names(i), present, strict=True):
            shape = [*heads, TOTAL_SEQUENCE_LENGTH, config.head_dim]
            graph.output(name, value, shape, form.cache_dtype)
    return graph.finish(producer_version)


def lm_head_rows(weights: Weights, config: DecoderConfig) -> LazyArray:
    """float32 [vocab_size, hidden_size], cut to the tokenizer's length as predict.py does."""
    return first_rows(weights, EMBED_TOKENS if config.is_tied else LM_HEAD, config)


def embedding_rows(weights: Weights, config: DecoderConfig) -> LazyArray:
    """float32 [vocab_size, hidden_size], the rows that the runtime gathers by token id."""
    return first_rows(weights, EMBED_TOKENS, config)


def first_rows(weights: Weights, name: str, config: DecoderConfig) -> LazyArray:
    """The rows of an embedding matrix that the tokenizer can reach."""
    # The file may hold more rows than there are tokens (151,936 for 151,646 in the 0.5B).
    rows = max(weights.rows_of(name), config.vocab_size)
    return weights.take(name, rows, config.hidden_size).first_rows(config.vocab_size)
