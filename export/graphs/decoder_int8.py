"""The decoder's int8 layers: int8 weights, and uint8 activations with a scale for each token.

Hadamard transforms make activations and weights finer to round. The residual stream is transformed
once, and the weights that read or write it are transformed when they are exported. The inputs of
the output and down projections are transformed in the graph. At a down projection of Qwen2, a
token's largest value is 20 times the root mean square of its values, and up to 65 times.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from fastvlm_onnx.export.architecture.config import DecoderConfig
from fastvlm_onnx.export.graphs.hadamard import (
    Hadamard,
    hadamard_block,
    transform_inputs,
    transform_outputs,
)
from fastvlm_onnx.export.graphs.layers import Op, parameter
from fastvlm_onnx.export.graphs.layers_int8 import Int8Linear, QuantizedActivation
from fastvlm_onnx.export.graphs.linear import MatMulNBits
from fastvlm_onnx.export.tensors.lazy_array import LazyArray
from fastvlm_onnx.export.tensors.quantized_weight import QuantizedTensors
from fastvlm_onnx.export.tensors.weights import Weights

# A token's largest magnitude becomes this distance from the zero point 128.
LARGEST_INTEGER: Final = 127
# Avoids a division by zero for a row of zeros.
SMALLEST_PEAK: Final = 1e-30
# Larger blocks spread outliers further. Blocks of the residual stream cost no time in the layers.
# The inputs of output and down projections are transformed in every layer, where larger blocks take
# more time; docs/quantisation.md has the figures.
STREAM_BLOCK: Final = 128
INPUT_BLOCK: Final = 64
SPREAD_PRODUCTS: Final = ("o_proj", "down_proj")
# 8 tokens leave a fifth more of lm_head's divergence, 64 leave a quarter less.
NUM_REFINED: Final = 16


def quantize_tokens(op: Op, x: ir.Value, width: int) -> tuple[QuantizedActivation, ir.Value]:
    """Quantise each row of x [B, N, width] by its largest magnitude.

    Returns:
        The integers with a scale of 1, and each row's own scale, float32 [B, N, 1]. A product of
        the integers must be multiplied by the row's scale.
    """
    highest, lowest = op.ReduceMax(x, [-1], keepdims=1), op.ReduceMin(x, [-1], keepdims=1)
    # As Python numbers, these would become a cast in the graph for each of their uses.
    smallest = op.Constant(value=ir.tensor(np.float32(SMALLEST_PEAK)))
    step = op.Constant(value=ir.tensor(np.float32(1 / LARGEST_INTEGER)))
    scale = op.Mul(op.Max(highest, op.Neg(lowest), smallest), step)
    zero_point = op.Constant(value=ir.tensor(np.uint8(128)))
    zero_points = op.ConstantOfShape(op.Shape(scale), value=ir.tensor(np.array([128], np.uint8)))
    # A block is a whole row. With a scale for each tensor instead, x would first be divided by the
    # peaks, which writes and reads all of x once more.
    values = op.QuantizeLinear(x, scale, zero_points, axis=-1, block_size=width)
    return QuantizedActivation(values, 1.0, zero_point), scale


def int8_products(
    weights: Sequence[LazyArray], quantized: QuantizedTensors | None
) -> list[Int8Linear]:
    """Return a product for each weight.

    Args:
        weights: torch's weights [out, in].
        quantized: all weights, one below the other; they are rounded to the nearest when None.
    """
    if quantized is None:
        return [Int8Linear(weight) for weight in weights]
    stops = np.cumsum([weight.shape[0] for weight in weights]).tolist()
    starts = [0, *stops[:-1]]
    return [
        Int8Linear(weight, quantized=quantized.columns(start, stop))
        for weight, start, stop in zip(weights, starts, stops, strict=True)
    ]


class PerTokenInt8Linear(nn.Module):
    """int8 weights with a scale for each output, uint8 activations with a scale for each token.

    Qwen2 has tokens whose activations are a thousand times larger than those of other tokens. With
    a scale for each token, they do not coarsen the other rows.
    """

    def __init__(
        self,
        weights: Sequence[LazyArray],
        bias: LazyArray | None = None,
        *,
        quantized: QuantizedTensors | None = None,
    ):
        """Declare the layer.

        Args:
            weights: torch's weights [out, in].
            bias: [out], for a single weight.
            quantized: all weights, one below the other, as a calibration quantised them; they are
                rounded to the nearest when None.
        """
        super().__init__()
        self.in_size = weights[0].shape[1]
        self.products = nn.ModuleList(int8_products(weights, quantized))
        self.bias = None if bias is None else parameter(bias)

    def forward(self, op: Op, x: ir.Value) -> list[ir.Value]:
        activation, scale = quantize_tokens(op, x, self.in_size)
        outputs = [op.Mul(product(op, activation), scale) for product in self.products]
        if self.bias is not None:
            (only,) = outputs
            return [op.Add(only, self.bias)]
        return outputs


class SpreadInt8Linear(PerTokenInt8Linear):
    """PerTokenInt8Linear behind a Hadamard transform, which spreads the input's large values."""

    def __init__(
        self,
        weights: Sequence[LazyArray],
        bias: LazyArray | None = None,
        *,
        quantized: QuantizedTensors | None = None,
    ):
        """Declare the layer; the arguments are those of `PerTokenInt8Linear`.

        Args:
            weights: torch's weights [out, in], for an input that is not transformed.
            bias: [out], for a single weight.
            quantized: the transformed weights, quantised; None as there.
        """
        in_size = weights[0].shape[1]
        block_size = input_block("o_proj", in_size)
        transformed = [transform_inputs(weight, block_size) for weight in weights]
        super().__init__(transformed, bias, quantized=quantized)
        self.hadamard = Hadamard(in_size, block_size)

    def forward(self, op: Op, x: ir.Value) -> list[ir.Value]:
        return super().forward(op, self.hadamard(op, x))


class PerTokenInt8MLP(nn.Module):
    """down(silu(gate(x)) * up(x)), with a Hadamard transform before the down projection."""

    def __init__(
        self,
        weights: Weights,
        config: DecoderConfig,
        quantized: Mapping[str, QuantizedTensors] | None = None,
    ) -> None:
        """Declare the layers.

        Args:
            weights: the checkpoint at the MLP.
            config: the decoder's sizes.
            quantized: `gate_up_proj` and `down_proj` (of the transformed input) as a calibration
                quantised them; all are rounded to the nearest when None.

        Raises:
            CheckpointError: a tensor is missing or has another shape.
        """
        super().__init__()
        hidden_size, intermediate_size = config.hidden_size, config.intermediate_size
        self.hidden_size, self.intermediate_size = hidden_size, intermediate_size
        block_size = input_block("down_proj", intermediate_size)
        gate_up = [
            weights.take(f"{name}_proj.weight", intermediate_size, hidden_size)
            for name in ("gate", "up")
        ]
        self.gate_proj, self.up_proj = int8_products(
            gate_up, None if quantized is None else quantized["gate_up_proj"]
        )
        self.hadamard = Hadamard(intermediate_size, block_size)
        down = weights.take("down_proj.weight", hidden_size, intermediate_size)
        (self.down_proj,) = int8_products(
            [transform_inputs(down, block_size)],
            None if quantized is None else quantized["down_proj"],
        )

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        activation, scale = quantize_tokens(op, x, self.hidden_size)
        gate = op.Mul(self.gate_proj(op, activation), scale)
        # The scale of `up` is a factor of each whole row until the end, where it is multiplied
        # with the scale of `down`. This saves one pass over the widest activations.
        up = self.up_proj(op, activation)
        mixed = self.hadamard(op, op.Mul(op.Mul(gate, op.Sigmoid(gate)), up))
        activation, down_scale = quantize_tokens(op, mixed, self.intermediate_size)
        return op.Mul(self.down_proj(op, activation), op.Mul(down_scale, scale))


class RefinedInt8Head(MatMulNBits):
    """lm_head in int8, where the likeliest tokens' logits are computed again without rounding x.

    The product rounds x to 8 bits, which costs as much as every other rounding of a layer's input
    and decides between tokens of nearly equal logits. NUM_REFINED rows of the weight are few enough
    to be multiplied in float32.
    """

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        logits = self.rounded_logits(op, x)
        count = min(NUM_REFINED, self.out_size)
        _, tokens = op.TopK(logits, [count], axis=-1, sorted=0, _outputs=2)
        rows = self.rows(op, tokens)
        refined = op.Squeeze(op.MatMul(rows, op.Unsqueeze(x, [-1])), [-1])
        return op.ScatterElements(logits, tokens, refined, axis=-1)

    def rounded_logits(self, op: Op, x: ir.Value) -> ir.Value:
        """Return all logits of x, rounded to 8 bits: [B, 1, in] -> [B, 1, out]."""
        return super().forward(op, x)


class ChannelInt8Head(RefinedInt8Head):
    """RefinedInt8Head whose product is that of the layers, with a scale for each output channel.

    WebAssembly has fast kernels for this product and none for MatMulNBits, which rounds x in
    blocks. Here x has one scale, so a Hadamard transform spreads its large values first. The
    blocks of RefinedInt8Head stay: the likeliest tokens' rows are read from them, and token
    embeddings share their bytes.
    """

    def __init__(self, weight: LazyArray, block_size: int, bits: int) -> None:
        """Declare the layer; the arguments are those of `MatMulNBits`."""
        super().__init__(weight, block_size, bits)
        self.by_channel = SpreadInt8Linear([weight])

    def rounded_logits(self, op: Op, x: ir.Value) -> ir.Value:
        (logits,) = self.by_channel(op, x)
        return logits


def stream_block(config: DecoderConfig) -> int:
    """Return the number of channels in a block of the residual stream's transform."""
    return hadamard_block(config.hidden_size, STREAM_BLOCK)


def input_block(product: str, in_size: int) -> int:
    """Return the number of channels in a block of the transform before a product; 1 for none.

    Args:
        product: a key of `block_formats.PRODUCTS`.
        in_size: the product's input channels.
    """
    return hadamard_block(in_size, INPUT_BLOCK) if product in SPREAD_PRODUCTS else 1


def stream_transform(config: DecoderConfig) -> Hadamard:
    """Return the layer that transforms the residual stream, or turns it back."""
    return Hadamard(config.hidden_size, stream_block(config))


def transform_layer(weights: Weights, config: DecoderConfig) -> Weights:
    """Return a layer's tensors for a residual stream that `stream_transform` has transformed.

    The layer computes the same queries, keys and values, so it shares its cache with a layer of the
    checkpoint. Each norm's weight moves into the products behind it, since the transform stands
    between the two.

    Args:
        weights: the checkpoint at the layer.
        config: the decoder's sizes.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    hidden_size, intermediate_size = config.hidden_size, config.intermediate_size
    block_size = stream_block(config)
    q_width = config.num_attention_heads * config.head_dim
    kv_width = config.num_key_value_heads * config.head_dim
    norms = {
        name: weights.take(f"{name}_layernorm.weight", hidden_size)
        for name in ("input", "post_attention")
    }
    tensors = {
        f"{name}_layernorm.weight": norm.then(np.ones_like, hidden_size)
        for name, norm in norms.items()
    }
    for name, width, norm in (
        ("self_attn.q_proj", q_width, norms["input"]),
        ("self_attn.k_proj", kv_width, norms["input"]),
        ("self_attn.v_proj", kv_width, norms["input"]),
        ("mlp.gate_proj", intermediate_size, norms["post_attention"]),
        ("mlp.up_proj", intermediate_size, norms["post_attention"]),
    ):
        reader = weights.take(f"{name}.weight", width, hidden_size)
        tensors[f"{name}.weight"] = transform_inputs(scale_inputs(reader, norm), block_size)
    for name, width in (("self_attn.o_proj", q_width), ("mlp.down_proj", intermediate_size)):
        writer = weights.take(f"{name}.weight", hidden_size, width)
        tensors[f"{name}.weight"] = transform_outputs(writer, block_size)
    for name, width in (("q", q_width), ("k", kv_width), ("v", kv_width)):
        tensors[f"self_attn.{name}_proj.bias"] = weights.take(f"self_attn.{name}_proj.bias", width)
    return Weights(tensors)


def scale_inputs(weight: LazyArray, scale: LazyArray) -> LazyArray:
    """Multiply each column of a weight [out, in] by its number of `scale` [in]."""
    return weight.each_row(lambda rows, _: rows * scale.read())
