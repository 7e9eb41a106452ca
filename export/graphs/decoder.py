"""Qwen2 with its KV cache as an ONNX graph: inputs_embeds -> logits of the last position.

Source: Qwen2 (arXiv 2407.10671); transformers 4.48.3 modeling_qwen2.py.
"""

from dataclasses import dataclass
from functools import partial

import onnx_ir as ir
from onnxscript import nn

from fastvlm_onnx.export.architecture.config import DecoderConfig
from fastvlm_onnx.export.architecture.tensor_names import EMBED_TOKENS, LM_HEAD
from fastvlm_onnx.export.graphs.decoder_attention import (
    Attention,
    AttentionInputs,
    KeyValue,
    LayerOutput,
    last_position,
)
from fastvlm_onnx.export.graphs.decoder_int8 import stream_transform, transform_layer
from fastvlm_onnx.export.graphs.decoder_precisions import (
    DECODER_PRECISIONS,
    DecoderPrecision,
    LinearFactory,
)
from fastvlm_onnx.export.graphs.layers import MICROSOFT, OPSET, Graph, Op, parameter
from fastvlm_onnx.export.tensors.block_formats import PRODUCTS
from fastvlm_onnx.export.tensors.lazy_array import LazyArray
from fastvlm_onnx.export.tensors.quantized_weight import CalibratedWeights
from fastvlm_onnx.export.tensors.weights import Weights
from fastvlm_onnx.names import (
    BATCH_SIZE,
    DECODER,
    HIDDEN_STATES,
    INPUTS_EMBEDS,
    LOGITS,
    PAST_SEQUENCE_LENGTH,
    SEQUENCE_LENGTH,
    TOTAL_SEQUENCE_LENGTH,
    past_names,
    present_names,
)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""

    def __init__(self, weights: Weights, width: int, eps: float) -> None:
        super().__init__()
        self.weight = parameter(weights.take("weight", width))
        self.eps = eps

    def forward(
        self, op: Op, x: ir.Value, residual: ir.Value | None = None
    ) -> tuple[ir.Value, ir.Value]:
        """Return the norm of x + residual, and the sum itself; of x alone without a residual."""
        if residual is None:
            # ONNX Runtime fuses this form into one SimplifiedLayerNormalization.
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


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(
        self,
        weights: Weights,
        config: DecoderConfig,
        gate_up_linear: LinearFactory,
        down_linear: LinearFactory,
    ) -> None:
        super().__init__()
        hidden_size, intermediate_size = config.hidden_size, config.intermediate_size
        self.gate_up_proj = gate_up_linear(
            [
                weights.take(f"{name}_proj.weight", intermediate_size, hidden_size)
                for name in ("gate", "up")
            ]
        )
        down = weights.take("down_proj.weight", hidden_size, intermediate_size)
        self.down_proj = down_linear([down])

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        gate, up = self.gate_up_proj(op, x)
        (down,) = self.down_proj(op, op.Mul(op.Mul(gate, op.Sigmoid(gate)), up))
        return down


class DecoderLayer(nn.Module):
    def __init__(
        self,
        weights: Weights,
        config: DecoderConfig,
        precision: DecoderPrecision,
        layer: int,
        operators: "DecoderOperators",
        calibrated: CalibratedWeights | None = None,
    ) -> None:
        super().__init__()
        qkv, o, gate_up, down = (
            precision.linear_of(layer, product, calibrated) for product in PRODUCTS
        )
        eps, width = config.rms_norm_eps, config.hidden_size
        norm = operators.norm
        self.input_layernorm = norm(weights / "input_layernorm", width, eps)
        self.self_attn = operators.attention(weights / "self_attn", config, qkv, o)
        self.post_attention_layernorm = norm(weights / "post_attention_layernorm", width, eps)
        mlp = precision.mlp_of(layer, config, calibrated) or partial(
            MLP, gate_up_linear=gate_up, down_linear=down
        )
        self.mlp: nn.Module = mlp(weights / "mlp", config)

    def forward(
        self,
        op: Op,
        residual: ir.Value,
        update: ir.Value | None,
        past: KeyValue,
        inputs: AttentionInputs,
        output: LayerOutput,
    ) -> tuple[ir.Value, ir.Value, KeyValue]:
        """Return residual and update, which the next norm adds, and present keys and values.

        Args:
            residual: float32 [B, sequence_length, hidden_size].
            update: the previous layer's update, not yet added; None for the first layer.
            past: the layer's cache before this run.
            inputs: the inputs that all layers share.
            output: the part of the output to compute.
        """
        if update is None:
            normalized, residual = self.input_layernorm(op, residual)
        else:
            normalized, residual = self.input_layernorm(op, update, residual)
        mixed, present = self.self_attn(op, normalized, past, inputs, output)
        if output is LayerOutput.LAST_POSITION:
            residual = last_position(op, residual)
        normalized, residual = self.post_attention_layernorm(op, mixed, residual)
        return residual, self.mlp(op, normalized), present


@dataclass(frozen=True)
class DecoderOperators:
    """The building blocks that one set of ONNX operators provides.

    Attributes:
        norm: RMSNorm.
        attention: attention over the cache.
        attention_inputs: the inputs of attention that all layers share.
        opset: the version of ONNX's own operators that these blocks need.
    """

    norm: type[RMSNorm] = RMSNorm
    attention: type[Attention] = Attention
    attention_inputs: type[AttentionInputs] = AttentionInputs
    opset: int = OPSET


def build_decoder(
    weights: Weights,
    config: DecoderConfig,
    precision: str = "fp32",
    *,
    operators: DecoderOperators = DecoderOperators(),
    has_lm_head: bool = True,
    calibrated: CalibratedWeights | None = None,
) -> ir.Model:
    """Build the decoder: inputs_embeds and the cache -> logits of the last position, and the cache.

    Args:
        weights: the checkpoint at its root: `model.layers...`, `model.norm`, `lm_head`.
        config: the decoder's sizes.
        precision: a key of DECODER_PRECISIONS.
        operators: the building blocks to use.
        has_lm_head: end with logits; otherwise with lm_head's input, `hidden_states`. A graph
            without lm_head is for the CPU, where attention without tiles is faster.
        calibrated: the weights of all products, quantised in the precision's `calibrated_form`.

    Returns:
        A graph with logits float32 [B, 1, vocab_size], or hidden states float32
        [B, 1, hidden_size].

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    settings = DECODER_PRECISIONS[precision]
    model = weights / "model"
    each_layer = [model / f"layers.{i}" for i in range(config.num_hidden_layers)]
    if settings.transforms_stream:
        each_layer = [transform_layer(layer, config) for layer in each_layer]
    layers = nn.ModuleList(
        [
            DecoderLayer(layer, config, settings, i, operators, calibrated)
            for i, layer in enumerate(each_layer)
        ]
    )
    layers._set_name("layers")

    graph = Graph(DECODER, operators.opset)
    op = graph.op
    residual = graph.input(
        INPUTS_EMBEDS, ir.DataType.FLOAT, [BATCH_SIZE, SEQUENCE_LENGTH, config.hidden_size]
    )
    inputs = operators.attention_inputs(
        graph,
        config,
        settings.cache_dtype,
        residual,
        avoids_tiling=settings.avoids_tiling or not has_lm_head,
    )
    transform = stream_transform(config) if settings.transforms_stream else None
    if transform:
        transform._set_name("stream_transform")
        residual = transform(op, residual)
    heads: list[str | int] = [BATCH_SIZE, config.num_key_value_heads]
    update = None
    presents: list[KeyValue] = []
    for i, layer in enumerate(layers):
        shape = [*heads, PAST_SEQUENCE_LENGTH, config.head_dim]
        key_name, value_name = past_names(i)
        past = (
            graph.input(key_name, settings.cache_dtype, shape),
            graph.input(value_name, settings.cache_dtype, shape),
        )
        is_last = i == config.num_hidden_layers - 1
        # Logits are computed for the last position alone, so the last layer's MLP sees one row.
        output = LayerOutput.LAST_POSITION if is_last else LayerOutput.ALL_POSITIONS
        residual, update, present = layer(op, residual, update, past, inputs, output)
        presents.append(present)
    norm = operators.norm(model / "norm", config.hidden_size, config.rms_norm_eps)
    norm._set_name("norm")
    if transform:
        # The transform is its own inverse.
        residual, update = transform(op, op.Add(residual, update)), None
    hidden, _ = norm(op, residual) if update is None else norm(op, update, residual)
    if has_lm_head:
        lm_head = settings.lm_head(lm_head_rows(weights, config))
        lm_head._set_name("lm_head")
        graph.output(LOGITS, lm_head(op, hidden), [BATCH_SIZE, 1, config.vocab_size])
    else:
        graph.output(HIDDEN_STATES, hidden, [BATCH_SIZE, 1, config.hidden_size])
    for i, present in enumerate(presents):
        for name, value in zip(present_names(i), present, strict=True):
            shape = [*heads, TOTAL_SEQUENCE_LENGTH, config.head_dim]
            graph.output(name, value, shape, settings.cache_dtype)
    return graph.finish()


def lm_head_rows(weights: Weights, config: DecoderConfig) -> LazyArray:
    """Return lm_head, float32 [vocab_size, hidden_size], cut as predict.py cuts it."""
    return first_rows(weights, EMBED_TOKENS if config.is_tied else LM_HEAD, config)


def embedding_rows(weights: Weights, config: DecoderConfig) -> LazyArray:
    """Return the token embeddings, float32 [vocab_size, hidden_size]."""
    return first_rows(weights, EMBED_TOKENS, config)


def first_rows(weights: Weights, name: str, config: DecoderConfig) -> LazyArray:
    """Return the rows of an embedding matrix that belong to a token id."""
    # A matrix may have more rows than the tokenizer has tokens: 151,936 for 151,646 in the 0.5B.
    rows = max(weights.rows_of(name), config.vocab_size)
    return weights.take(name, rows, config.hidden_size).first_rows(config.vocab_size)
