"""FastViTHD for the CPU: pointwise layers and attention's products in int8, the rest in float32.

Convolutions read a map [B, C, H, W], products read [B, H, W, C]. ONNX Runtime's blocked
convolutions fuse the change of layout and the addition of a residual, if an `Identity` convolution
stands between them. docs/performance.md has the times of each form.

Source: as vision_encoder.py, which holds the same network in standard operators.
"""

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from fastvlm_onnx.export.architecture.config import VISION_HEAD_DIM, VISION_PATCH_SIZE, VisionConfig
from fastvlm_onnx.export.graphs.layers import (
    MICROSOFT,
    Graph,
    Op,
    Shape,
    even_then_odd_columns,
    fold_batch_norm,
    read_conv,
    register_parameters,
    split_filters,
)
from fastvlm_onnx.export.graphs.layers_int8 import (
    Identity,
    Int8Linear,
    QuantizedActivation,
    fewest_parts,
    pointwise,
    quantize_activation,
    scan,
    to_channels_first,
    to_channels_last,
)
from fastvlm_onnx.export.graphs.stem_int8 import Stem
from fastvlm_onnx.export.graphs.vision_encoder import LayerNorm, SqueezeExcite, read_depthwise
from fastvlm_onnx.export.tensors.lazy_array import LazyArray, scaled_rows
from fastvlm_onnx.export.tensors.weights import Weights
from fastvlm_onnx.names import BATCH_SIZE, IMAGE_HIDDEN_STATES, PIXEL_VALUES, VISION_ENCODER


class ConvFFN(nn.Module):
    """7x7 depthwise convolution with BatchNorm, then a two-layer MLP with layer_scale.

    BatchNorm and layer_scale are folded into weights.
    """

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
        """Map [B, C, H, W] to [B, H, W, C]."""
        x_int8 = quantize_activation(op, to_channels_last(op, self.conv(op, x)))
        if self.tiles == 1:
            return self._mlp(op, x_int8)
        register_parameters(op, self.fc1)
        register_parameters(op, self.fc2)

        def tile(body: Op, *slices: ir.Value) -> ir.Value:
            return self._mlp(body, QuantizedActivation(*slices))

        shape: Shape = ["tile_tokens", self.width]
        mixed = scan(
            op,
            tile,
            [
                (
                    op.Reshape(x_int8.values, [self.tiles, -1, self.width]),
                    ir.DataType.UINT8,
                    shape,
                ),
                (op.Expand(x_int8.scale, [self.tiles]), ir.DataType.FLOAT, []),
                (op.Expand(x_int8.zero_point, [self.tiles]), ir.DataType.UINT8, []),
            ],
            (ir.DataType.FLOAT, shape),
        )
        return op.Reshape(mixed, [-1, self.side, self.side, self.width])

    def _mlp(self, op: Op, x: QuantizedActivation) -> ir.Value:
        return self.fc2(op, op.Gelu(self.fc1(op, x)))


class RepMixerBlock(nn.Module):
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


class PatchEmbed(nn.Module):
    """Halve the sides of the map and double its channels; a GELU follows each convolution.

    The first convolution is grouped, with two filters for each channel. ONNX Runtime is fast for
    depthwise convolutions only, so two of them are declared: the even and the odd filters. The
    columns of the following product are reordered to match.
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


class MHSA(nn.Module):
    """Self-attention over tokens [B, N, C].

    The factor head_dim^-0.5 and layer_scale are folded into weights.
    """

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


class AttentionBlock(nn.Module):
    """Map tokens [B, N, C] to tokens; only the depthwise convolution reads them as a map."""

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
    """Reshape tokens [B, N, C] to a map [B, C, H, W]."""
    return to_channels_first(op, op.Reshape(tokens, [0, side, side, width]))


class AttentionStage(nn.Module):
    """A position encoding on the map, then attention blocks on tokens."""

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


class ConvExp(nn.Module):
    """The last convolution, with two filters for each channel and squeeze-and-excite.

    Maps a map [B, C, H, W] to tokens [B, H * W, hidden_size].
    """

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


class FastViTHD(nn.Module):
    """The vision encoder up to and including conv_exp, for one image size."""

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


def build_vision_encoder_int8(weights: Weights, config: VisionConfig, image_size: int) -> ir.Model:
    """Build the int8 vision encoder for one image size S.

    Args:
        weights: the checkpoint under VISION_PREFIX.
        config: the vision encoder's sizes.
        image_size: S, the side of the square input in pixels, a multiple of 64.

    Returns:
        A graph from pixel_values, float32 [B, 3, S, S] in 0..1, to image_hidden_states, float32
        [B, (S / 64)^2, hidden_size].

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    graph = Graph(VISION_ENCODER)
    pixel_values = graph.input(
        PIXEL_VALUES, ir.DataType.FLOAT, [BATCH_SIZE, 3, image_size, image_size]
    )
    hidden_states = FastViTHD(weights, config, image_size)(graph.op, pixel_values)
    num_image_tokens = (image_size // VISION_PATCH_SIZE) ** 2
    graph.output(
        IMAGE_HIDDEN_STATES, hidden_states, [BATCH_SIZE, num_image_tokens, config.hidden_size]
    )
    return graph.finish()
