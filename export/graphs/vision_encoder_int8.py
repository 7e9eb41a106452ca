"""FastViTHD for the CPU: pointwise layers and projections in int8, everything else in float32.

Convolutions see the map [B, C, H, W], products see it as [B, H, W, C]; ONNX Runtime's blocked
convolutions take the change of layout, and the addition of a residual, into themselves where an
`Identity` convolution stands behind them. docs/performance.md says what each form is worth.

Source: as vision_encoder.py, which holds the same network in standard operators.
"""

import math
from typing import Final

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from fastvlm_onnx.export.architecture.config import VISION_HEAD_DIM, VisionConfig
from fastvlm_onnx.export.graphs.layers import (
    MICROSOFT,
    Conv2d,
    Graph,
    Op,
    Shape,
    fold_batch_norm,
    parameter,
    read_conv,
)
from fastvlm_onnx.export.graphs.layers_int8 import (
    Identity,
    Int8Linear,
    QuantizedActivation,
    pointwise,
    quantize_activation,
    scan,
)
from fastvlm_onnx.export.graphs.vision_encoder import LayerNorm, SqueezeExcite, read_depthwise
from fastvlm_onnx.export.tensors.lazy_array import FloatArray, LazyArray, scaled_rows
from fastvlm_onnx.export.tensors.weights import Weights
from fastvlm_onnx.names import BATCH_SIZE, IMAGE_HIDDEN_STATES, PIXEL_VALUES, VISION_ENCODER

# A ConvFFN's wide activations are computed in tiles of tokens of about this size, so that they stay
# in the cache between the two products.
TILE_BYTES: Final = 3_200_000


def to_channels_last(op: Op, x: ir.Value) -> ir.Value:
    return op.Transpose(x, perm=[0, 2, 3, 1])


def to_channels_first(op: Op, x: ir.Value) -> ir.Value:
    return op.Transpose(x, perm=[0, 3, 1, 2])


def fewest_parts(rows: int, row_bytes: int) -> int:
    """Into how many equal parts rows are cut so that none is larger than TILE_BYTES."""
    least = math.ceil(rows * row_bytes / TILE_BYTES)
    return next(parts for parts in range(max(1, least), rows + 1) if rows % parts == 0)


class ConvFFN(nn.Module):  # type: ignore[misc]
    """7x7 depthwise convolution (BatchNorm folded), then a two-layer MLP (layer_scale folded)."""

    def __init__(
        self, weights: Weights, width: int, ffn_width: int, layer_scale: LazyArray, side: int
    ) -> None:
        super().__init__()
        self.width, self.side = width, side
        self.tiles = fewest_parts(side * side, 4 * ffn_width)
        self.conv = fold_batch_norm(weights / "conv", width, 7)
        fc1, fc2 = weights / "fc1", weights / "fc2"
        self.fc1 = Int8Linear(
            pointwise(fc1.take("weight", ffn_width, width, 1, 1)), fc1.take("bias", ffn_width)
        )
        self.fc2 = Int8Linear(
            scaled_rows(pointwise(fc2.take("weight", width, ffn_width, 1, 1)), layer_scale),
            scaled_rows(fc2.take("bias", width), layer_scale),
        )

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        """[B, C, H, W] -> [B, H, W, C]."""
        narrow = quantize_activation(op, to_channels_last(op, self.conv(op, x)))
        if self.tiles == 1:
            return self._mlp(op, narrow)
        self.fc1.register(op)
        self.fc2.register(op)

        def tile(body: Op, *slices: ir.Value) -> ir.Value:
            return self._mlp(body, QuantizedActivation(*slices))

        shape: Shape = ["tile_tokens", self.width]
        mixed = scan(
            op,
            tile,
            [
                (
                    op.Reshape(narrow.values, [self.tiles, -1, self.width]),
                    ir.DataType.UINT8,
                    shape,
                ),
                (op.Expand(narrow.scale, [self.tiles]), ir.DataType.FLOAT, []),
                (op.Expand(narrow.zero_point, [self.tiles]), ir.DataType.UINT8, []),
            ],
            (ir.DataType.FLOAT, shape),
        )
        return op.Reshape(mixed, [-1, self.side, self.side, self.width])

    def _mlp(self, op: Op, narrow: QuantizedActivation) -> ir.Value:
        return self.fc2(op, op.Gelu(self.fc1(op, narrow)))


class RepMixerBlock(nn.Module):  # type: ignore[misc]
    def __init__(self, weights: Weights, width: int, ffn_width: int, side: int) -> None:
        super().__init__()
        self.token_mixer = read_depthwise(weights / "token_mixer", width, 3)
        layer_scale = weights.take("layer_scale", width, 1, 1)
        self.convffn = ConvFFN(weights / "convffn", width, ffn_width, layer_scale, side)
        self.residual = Identity(width)

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        x = self.token_mixer(op, x)
        update = self.residual(op, to_channels_first(op, self.convffn(op, x)))
        return op.Add(update, x)


class PatchEmbed(nn.Module):  # type: ignore[misc]
    """Halve the map and double its channels; both convolutions are followed by GELU.

    A grouped convolution that gives two channels for each is two depthwise ones, of the even and of
    the odd filters; only those have a fast form. The product behind them reads its inputs in that
    order.
    """

    def __init__(self, weights: Weights, in_width: int, out_width: int) -> None:
        super().__init__()
        conv = weights / "proj.0.lkb_reparam"
        self.even, self.odd = split_filters(conv, in_width, out_width, 7, stride=2)
        reparam_conv = weights / "proj.1.reparam_conv"
        weight = pointwise(reparam_conv.take("weight", out_width, out_width, 1, 1))
        self.pointwise = Int8Linear(
            weight.then(even_then_odd_columns, out_width, out_width),
            reparam_conv.take("bias", out_width),
        )

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        halves = op.Concat(self.even(op, x), self.odd(op, x), axis=1)
        tokens = to_channels_last(op, op.Gelu(halves))
        return to_channels_first(op, op.Gelu(self.pointwise(op, tokens)))


def split_filters(
    weights: Weights, in_width: int, out_width: int, kernel: int, *, stride: int = 1
) -> tuple[Conv2d, Conv2d]:
    """A grouped convolution with two filters a channel, as two depthwise ones."""
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


class MHSA(nn.Module):  # type: ignore[misc]
    """Self-attention over tokens [B, N, C]; head_dim^-0.5 and layer_scale are in the weights."""

    def __init__(self, weights: Weights, width: int, layer_scale: LazyArray) -> None:
        super().__init__()
        self.num_heads = width // VISION_HEAD_DIM
        qkv = weights.take("qkv.weight", 3 * width, width)

        def part(index: int, factor: float = 1.0) -> Int8Linear:
            rows = slice(index * width, (index + 1) * width)
            return Int8Linear(qkv.then(lambda w: w[rows] * np.float32(factor), width, width))

        self.q, self.k, self.v = part(0, VISION_HEAD_DIM**-0.5), part(1), part(2)
        proj = weights / "proj"
        self.proj = Int8Linear(
            scaled_rows(proj.take("weight", width, width), layer_scale),
            scaled_rows(proj.take("bias", width), layer_scale),
        )

    def forward(self, op: Op, tokens: ir.Value) -> ir.Value:
        x = quantize_activation(op, tokens)
        mixed = op.MultiHeadAttention(
            self.q(op, x),
            self.k(op, x),
            self.v(op, x),
            num_heads=self.num_heads,
            scale=1.0,
            _domain=MICROSOFT,
        )
        return self.proj(op, mixed)


class AttentionBlock(nn.Module):  # type: ignore[misc]
    """[B, N, C] -> [B, N, C]; the map is needed for the depthwise convolution alone."""

    def __init__(self, weights: Weights, width: int, ffn_width: int, side: int) -> None:
        super().__init__()
        self.width, self.side = width, side
        self.norm = LayerNorm(weights / "norm", width)
        layer_scale_1 = weights.take("layer_scale_1", width, 1, 1)
        self.token_mixer = MHSA(weights / "token_mixer", width, layer_scale_1)
        layer_scale_2 = weights.take("layer_scale_2", width, 1, 1)
        self.convffn = ConvFFN(weights / "convffn", width, ffn_width, layer_scale_2, side)

    def forward(self, op: Op, tokens: ir.Value) -> ir.Value:
        tokens = op.Add(tokens, self.token_mixer(op, self.norm(op, tokens)))
        update = self.convffn(op, to_map(op, tokens, self.side, self.width))
        return op.Add(tokens, op.Reshape(update, [0, -1, self.width]))


def to_map(op: Op, tokens: ir.Value, side: int, width: int) -> ir.Value:
    """[B, N, C] -> [B, C, H, W]."""
    return to_channels_first(op, op.Reshape(tokens, [0, side, side, width]))


class AttentionStage(nn.Module):  # type: ignore[misc]
    """The position encoding, then attention blocks on tokens."""

    def __init__(
        self, position: Weights, blocks: Weights, depth: int, width: int, ffn_width: int, side: int
    ) -> None:
        super().__init__()
        self.width, self.side = width, side
        self.position = read_depthwise(position, width, 7)
        self.blocks = nn.ModuleList(
            [AttentionBlock(blocks / str(b), width, ffn_width, side) for b in range(depth)]
        )

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        tokens = op.Reshape(to_channels_last(op, self.position(op, x)), [0, -1, self.width])
        for block in self.blocks:
            tokens = block(op, tokens)
        return to_map(op, tokens, self.side, self.width)


class Stem(nn.Module):  # type: ignore[misc]
    """Quarter the map: a full, a depthwise and a pointwise convolution, GELU after each.

    Computed in strips of rows, since the first convolution's output is by far the largest tensor of
    the network. A strip reads three rows above its own. Above the first one these lie outside the
    picture, where the depthwise convolution has to see zeros: a fourth channel marks them, and
    pushes the first convolution's output so low that GELU leaves nothing.
    """

    def __init__(self, weights: Weights, width: int, image_size: int) -> None:
        super().__init__()
        self.width, self.image_size = width, image_size
        row_bytes = width * 4 * image_size  # two rows of the first convolution's output
        self.strips = fewest_parts(image_size // 4, row_bytes)
        full, depthwise = weights / "0.reparam_conv", weights / "1.reparam_conv"
        kernel = full.take("weight", width, 3, 3, 3)
        self.full_weight = parameter(kernel.then(with_outside_channel, width, 4, 3, 3))
        self.full_bias = parameter(full.take("bias", width))
        self.depthwise_weight = parameter(depthwise.take("weight", width, 1, 3, 3))
        self.depthwise_bias = parameter(depthwise.take("bias", width))
        last = weights / "2.reparam_conv"
        self.pointwise = Int8Linear(
            pointwise(last.take("weight", width, width, 1, 1)), last.take("bias", width)
        )

    def forward(self, op: Op, pixel_values: ir.Value) -> ir.Value:
        above = [0, 0, HALO_ROWS, 0, 0, 0, 0, 0]
        inside = op.Mul(op.Slice(pixel_values, [0], [1], [1]), 0.0)
        padded = op.Concat(
            op.Pad(pixel_values, above), op.Pad(inside, above, 1.0), axis=1
        )  # [B, 4, image_size + 3, image_size]
        rows = self.image_size // self.strips
        rows_of_strips = np.arange(self.strips)[:, None] * rows + np.arange(rows + HALO_ROWS)
        overlapping = op.Gather(
            padded, op.Constant(value=ir.tensor(rows_of_strips)), axis=2
        )  # [B, 4, strips, rows + 3, image_size]
        self.pointwise.register(op)

        def strip(body: Op, x: ir.Value) -> ir.Value:
            x = body.Gelu(halve(body, x, self.full_weight, self.full_bias, 1))
            x = body.Gelu(halve(body, x, self.depthwise_weight, self.depthwise_bias, self.width))
            return body.Gelu(self.pointwise(body, to_channels_last(body, x)))

        side = self.image_size // 4
        strips = scan(
            op,
            strip,
            [
                (
                    op.Transpose(overlapping, perm=[2, 0, 1, 3, 4]),
                    ir.DataType.FLOAT,
                    [BATCH_SIZE, 4, rows + HALO_ROWS, self.image_size],
                )
            ],
            (ir.DataType.FLOAT, [BATCH_SIZE, side // self.strips, side, self.width]),
        )
        tokens = op.Reshape(
            op.Transpose(strips, perm=[1, 0, 2, 3, 4]), [-1, side, side, self.width]
        )
        return to_channels_first(op, tokens)


# Rows of the picture that the stem's first row of a strip needs above the strip's own.
HALO_ROWS: Final = 3


def halve(op: Op, x: ir.Value, weight: ir.Value, bias: ir.Value, groups: int) -> ir.Value:
    """A 3x3 convolution of stride 2 whose input holds the row above it already."""
    pads = [0, 1, 0, 1]
    return op.Conv(x, weight, bias, kernel_shape=[3, 3], strides=[2, 2], pads=pads, group=groups)


def with_outside_channel(kernel: FloatArray) -> FloatArray:
    """[C, 3, 3, 3] -> [C, 4, 3, 3]; the new channel's middle pushes every output far below zero."""
    outside = np.zeros_like(kernel[:, :1])
    outside[:, 0, 1, 1] = -1e6
    return np.concatenate([kernel, outside], axis=1)


class ConvExp(nn.Module):  # type: ignore[misc]
    """The last convolution, two channels for each, with squeeze-and-excite: map -> tokens."""

    def __init__(self, weights: Weights, config: VisionConfig) -> None:
        super().__init__()
        self.hidden_size = config.hidden_size
        self.reparam_conv = read_conv(
            weights / "reparam_conv",
            config.widths[4],
            config.hidden_size,
            3,
            groups=config.widths[4],
        )
        self.se = SqueezeExcite(weights / "se", config.hidden_size, config.se_width)

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        x = op.Gelu(self.se(op, self.reparam_conv(op, x)))
        return op.Reshape(to_channels_last(op, x), [0, -1, self.hidden_size])


class FastViTHD(nn.Module):  # type: ignore[misc]
    """The vision encoder up to conv_exp, at one image size."""

    def __init__(self, weights: Weights, config: VisionConfig, image_size: int) -> None:
        super().__init__()
        widths, ffn_widths = config.widths, config.ffn_widths
        sides = [image_size // (4 << stage) for stage in range(5)]
        network = weights / "network"

        def mixer_stage(index: int, stage: int) -> list[nn.Module]:
            return [
                RepMixerBlock(
                    network / f"{index}.{b}", widths[stage], ffn_widths[stage], sides[stage]
                )
                for b in range(config.depths[stage])
            ]

        def attention_stage(position: int, index: int, stage: int) -> AttentionStage:
            return AttentionStage(
                network / str(position),
                network / str(index),
                config.depths[stage],
                widths[stage],
                ffn_widths[stage],
                sides[stage],
            )

        self.layers = nn.ModuleList(
            [
                Stem(weights / "patch_embed", widths[0], image_size),
                *mixer_stage(0, 0),
                PatchEmbed(network / "1", widths[0], widths[1]),
                *mixer_stage(2, 1),
                PatchEmbed(network / "3", widths[1], widths[2]),
                *mixer_stage(4, 2),
                PatchEmbed(network / "5", widths[2], widths[3]),
                attention_stage(6, 7, 3),
                PatchEmbed(network / "8", widths[3], widths[4]),
                attention_stage(9, 10, 4),
                ConvExp(weights / "conv_exp", config),
            ]
        )

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        for layer in self.layers:
            x = layer(op, x)
        return x


def build_vision_encoder_int8(
    weights: Weights, config: VisionConfig, image_size: int, producer_version: str
) -> ir.Model:
    """pixel_values float32 [B, 3, S, S] in 0..1 -> image_hidden_states [B, (S/64)^2, hidden_size].

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    graph = Graph(VISION_ENCODER)
    pixel_values = graph.input(
        PIXEL_VALUES, ir.DataType.FLOAT, [BATCH_SIZE, 3, image_size, image_size]
    )
    hidden_states = FastViTHD(weights, config, image_size)(graph.op, pixel_values)
    tokens = (image_size // 64) ** 2
    graph.output(IMAGE_HIDDEN_STATES, hidden_states, [BATCH_SIZE, tokens, config.hidden_size])
    return graph.finish(producer_version)
