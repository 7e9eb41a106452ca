"""FastViTHD as an ONNX graph: pixel_values -> image_hidden_states.

All operators are of the domain `ai.onnx`; pointwise layers are Conv, and attention is MatMul and
Softmax. Every execution provider can therefore run the whole graph.

Source: arXiv 2412.13303 and apple/ml-fastvlm @592b4ad (mci.py), reparameterised form.
"""

from collections.abc import Callable

import onnx_ir as ir
from onnxscript import nn

from fastvlm_onnx.export.architecture.config import VISION_HEAD_DIM, VISION_PATCH_SIZE, VisionConfig
from fastvlm_onnx.export.graphs.layers import (
    LAYER_NORM_EPS,
    OPSET,
    Conv2d,
    Graph,
    MatMul,
    Op,
    fold_batch_norm,
    gelu,
    parameter,
    read_conv,
)
from fastvlm_onnx.export.tensors.lazy_array import (
    FloatArray,
    LazyArray,
    scaled_rows,
    transposed,
)
from fastvlm_onnx.export.tensors.weights import Weights
from fastvlm_onnx.names import BATCH_SIZE, IMAGE_HIDDEN_STATES, PIXEL_VALUES, VISION_ENCODER


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate that is computed from the channel means of the whole image."""

    def __init__(self, weights: Weights, width: int, se_width: int) -> None:
        super().__init__()
        self.reduce = read_conv(weights / "reduce", width, se_width, 1)
        self.expand = read_conv(weights / "expand", se_width, width, 1)

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        gate = self.expand(op, op.Relu(self.reduce(op, op.GlobalAveragePool(x))))
        return op.Mul(x, op.Sigmoid(gate))


class MobileOneBlock(nn.Module):
    """Convolution, squeeze-and-excite if `se_width` is given, then exact GELU."""

    def __init__(
        self,
        weights: Weights,
        in_width: int,
        out_width: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        se_width: int | None = None,
    ) -> None:
        super().__init__()
        self.reparam_conv = read_conv(
            weights / "reparam_conv", in_width, out_width, kernel, stride=stride, groups=groups
        )
        self.se = None if se_width is None else SqueezeExcite(weights / "se", out_width, se_width)

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        x = self.reparam_conv(op, x)
        if self.se is not None:
            x = self.se(op, x)
        return gelu(op, x)


class PatchEmbed(nn.Module):
    """Halve the sides of the map and double its channels; a GELU follows each convolution."""

    def __init__(self, weights: Weights, in_width: int, out_width: int) -> None:
        super().__init__()
        self.lkb_reparam = read_conv(
            weights / "proj.0.lkb_reparam", in_width, out_width, 7, stride=2, groups=in_width
        )
        self.pointwise = MobileOneBlock(weights / "proj.1", out_width, out_width, 1)

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        return self.pointwise(op, gelu(op, self.lkb_reparam(op, x)))


Downsample = Callable[[Weights, int, int], nn.Module]
"""Makes the layer between two stages from its weights, the width before and the width after."""


def read_depthwise(weights: Weights, width: int, kernel: int) -> Conv2d:
    """Read RepMixer (3x3) or RepCPE (7x7), whose residual is folded into the stored weight."""
    return read_conv(weights / "reparam_conv", width, width, kernel, groups=width)


class ConvFFN(nn.Module):
    """7x7 depthwise convolution with BatchNorm, then a two-layer MLP with layer_scale.

    BatchNorm and layer_scale are folded into weights.
    """

    def __init__(
        self, weights: Weights, width: int, ffn_width: int, layer_scale: LazyArray
    ) -> None:
        super().__init__()
        self.conv = fold_batch_norm(weights / "conv", width, 7)
        self.fc1 = read_conv(weights / "fc1", width, ffn_width, 1)
        fc2 = weights / "fc2"
        self.fc2 = Conv2d(
            scaled_rows(fc2.take("weight", width, ffn_width, 1, 1), layer_scale),
            scaled_rows(fc2.take("bias", width), layer_scale),
        )

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        return self.fc2(op, gelu(op, self.fc1(op, self.conv(op, x))))


class RepMixerBlock(nn.Module):
    def __init__(self, weights: Weights, width: int, ffn_width: int) -> None:
        super().__init__()
        self.token_mixer = read_depthwise(weights / "token_mixer", width, 3)
        layer_scale = weights.take("layer_scale", width, 1, 1)
        self.convffn = ConvFFN(weights / "convffn", width, ffn_width, layer_scale)

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        x = self.token_mixer(op, x)
        return op.Add(x, self.convffn(op, x))


class LayerNorm(nn.Module):
    """LayerNorm over the last axis, which is LayerNormChannel on tokens instead of a map."""

    def __init__(self, weights: Weights, width: int) -> None:
        super().__init__()
        self.weight = parameter(weights.take("weight", width))
        self.bias = parameter(weights.take("bias", width))

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        return op.LayerNormalization(x, self.weight, self.bias, axis=-1, epsilon=LAYER_NORM_EPS)


class MHSA(nn.Module):
    """Self-attention over tokens [B, N, C].

    The factor head_dim^-0.5 and layer_scale are folded into weights.
    """

    def __init__(self, weights: Weights, width: int, layer_scale: LazyArray) -> None:
        super().__init__()
        self.width, self.num_heads = width, width // VISION_HEAD_DIM
        qkv = weights.take("qkv.weight", 3 * width, width)
        self.qkv = MatMul(transposed(qkv.then(self._scale_queries, *qkv.shape)))
        proj = weights / "proj"
        self.proj = MatMul(
            transposed(scaled_rows(proj.take("weight", width, width), layer_scale)),
            scaled_rows(proj.take("bias", width), layer_scale),
        )

    def _scale_queries(self, qkv: FloatArray) -> FloatArray:
        qkv = qkv.copy()
        qkv[: self.width] *= VISION_HEAD_DIM**-0.5
        return qkv

    def forward(self, op: Op, tokens: ir.Value) -> ir.Value:
        q, k, v = op.Split(self.qkv(op, tokens), [self.width] * 3, axis=-1, _outputs=3)

        def heads(x: ir.Value, perm: list[int]) -> ir.Value:
            split = op.Reshape(x, [0, -1, self.num_heads, VISION_HEAD_DIM])
            return op.Transpose(split, perm=perm)

        scores = op.MatMul(heads(q, [0, 2, 1, 3]), heads(k, [0, 2, 3, 1]))
        mixed = op.MatMul(op.Softmax(scores, axis=-1), heads(v, [0, 2, 1, 3]))
        merged = op.Reshape(op.Transpose(mixed, perm=[0, 2, 1, 3]), [0, -1, self.width])
        return self.proj(op, merged)


class AttentionBlock(nn.Module):
    def __init__(self, weights: Weights, width: int, ffn_width: int, side: int) -> None:
        super().__init__()
        self.width, self.side = width, side
        self.norm = LayerNorm(weights / "norm", width)
        self.token_mixer = MHSA(
            weights / "token_mixer", width, weights.take("layer_scale_1", width, 1, 1)
        )
        layer_scale = weights.take("layer_scale_2", width, 1, 1)
        self.convffn = ConvFFN(weights / "convffn", width, ffn_width, layer_scale)

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        tokens = to_tokens(op, x, self.width)
        tokens = op.Add(tokens, self.token_mixer(op, self.norm(op, tokens)))
        x = op.Reshape(op.Transpose(tokens, perm=[0, 2, 1]), [0, self.width, self.side, self.side])
        return op.Add(x, self.convffn(op, x))


def to_tokens(op: Op, x: ir.Value, width: int) -> ir.Value:
    """Reshape a map [B, C, H, W] to tokens [B, H * W, C], row by row."""
    return op.Transpose(op.Reshape(x, [0, width, -1]), perm=[0, 2, 1])


class FastViTHD(nn.Module):
    """The vision encoder up to and including conv_exp, for one image size."""

    def __init__(
        self,
        weights: Weights,
        config: VisionConfig,
        image_size: int,
        downsample: Downsample = PatchEmbed,
    ) -> None:
        super().__init__()
        widths, ffn_widths = config.widths, config.ffn_widths
        self.hidden_size = config.hidden_size
        stem = weights / "patch_embed"
        self.patch_embed = nn.ModuleList(
            [
                MobileOneBlock(stem / "0", 3, widths[0], 3, stride=2),
                MobileOneBlock(stem / "1", widths[0], widths[0], 3, stride=2, groups=widths[0]),
                MobileOneBlock(stem / "2", widths[0], widths[0], 1),
            ]
        )
        network = weights / "network"

        def mixer_stage(index: int, stage: int) -> nn.ModuleList:
            return nn.ModuleList(
                [
                    RepMixerBlock(network / f"{index}.{b}", widths[stage], ffn_widths[stage])
                    for b in range(config.depths[stage])
                ]
            )

        def attention_stage(index: int, stage: int) -> nn.ModuleList:
            side = image_size // (4 << stage)
            return nn.ModuleList(
                [
                    AttentionBlock(network / f"{index}.{b}", widths[stage], ffn_widths[stage], side)
                    for b in range(config.depths[stage])
                ]
            )

        self.network = nn.ModuleList(
            [
                mixer_stage(0, 0),
                downsample(network / "1", widths[0], widths[1]),
                mixer_stage(2, 1),
                downsample(network / "3", widths[1], widths[2]),
                mixer_stage(4, 2),
                downsample(network / "5", widths[2], widths[3]),
                read_depthwise(network / "6", widths[3], 7),
                attention_stage(7, 3),
                downsample(network / "8", widths[3], widths[4]),
                read_depthwise(network / "9", widths[4], 7),
                attention_stage(10, 4),
            ]
        )
        self.conv_exp = MobileOneBlock(
            weights / "conv_exp",
            widths[4],
            config.hidden_size,
            3,
            groups=widths[4],
            se_width=config.se_width,
        )

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        for layer in (*self.patch_embed, *self.network):
            for block in layer if isinstance(layer, nn.ModuleList) else (layer,):
                x = block(op, x)
        return to_tokens(op, self.conv_exp(op, x), self.hidden_size)


def build_vision_encoder(
    weights: Weights,
    config: VisionConfig,
    image_size: int,
    downsample: Downsample = PatchEmbed,
    *,
    opset: int = OPSET,
) -> ir.Model:
    """Build the vision encoder for one image size S.

    Args:
        weights: the checkpoint under VISION_PREFIX.
        config: the vision encoder's sizes.
        image_size: S, the side of the square input in pixels, a multiple of 64.
        downsample: makes the layers between the stages.
        opset: the version of ONNX's own operators.

    Returns:
        A graph from pixel_values, float32 [B, 3, S, S] in 0..1, to image_hidden_states, float32
        [B, (S / 64)^2, hidden_size].

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    graph = Graph(VISION_ENCODER, opset)
    pixel_values = graph.input(
        PIXEL_VALUES, ir.DataType.FLOAT, [BATCH_SIZE, 3, image_size, image_size]
    )
    hidden_states = FastViTHD(weights, config, image_size, downsample)(graph.op, pixel_values)
    num_image_tokens = (image_size // VISION_PATCH_SIZE) ** 2
    graph.output(
        IMAGE_HIDDEN_STATES, hidden_states, [BATCH_SIZE, num_image_tokens, config.hidden_size]
    )
    return graph.finish()
