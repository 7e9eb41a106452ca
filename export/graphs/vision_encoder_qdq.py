"""FastViTHD in QDQ form, for providers with int8 kernels of their own, such as OpenVINO's.

The linear layers of the blocks are quantised. The stem, depthwise convolutions, attention itself,
the layers between stages and the last convolution stay float32: docs/benchmarks/qdq-search.md has
the error and the time of each choice.

Source: as vision_encoder.py, which holds the same network in float32.
"""

import re
from typing import Final

import onnx_ir as ir
from onnxscript import nn

from fastvlm_onnx.export.architecture.config import VisionConfig
from fastvlm_onnx.export.graphs.layers import Conv2d, Op, even_then_odd_columns, split_filters
from fastvlm_onnx.export.graphs.qdq import (
    Ranges,
    fold_factors,
    foldable_products,
    output_extremes,
    products_of,
    quantize_products,
)
from fastvlm_onnx.export.graphs.vision_encoder import build_vision_encoder
from fastvlm_onnx.export.tensors.weights import Weights

# The weights of a block's linear layers. The other pointwise layers have no residual around them:
# their error is large and their time is small.
QUANTIZED: Final = re.compile(r"\.(fc1|fc2|qkv|proj)\.weight$")


class PatchEmbed(nn.Module):
    """Halve the sides of the map and double its channels; a GELU follows each convolution.

    The first convolution is grouped, with two filters for each channel. OpenVINO computes it as a
    dense convolution, which is slower than two depthwise ones: the even and the odd filters. The
    columns of the following product are reordered to match.
    """

    def __init__(self, weights: Weights, in_width: int, out_width: int) -> None:
        super().__init__()
        conv = weights / "proj.0.lkb_reparam"
        self.even, self.odd = split_filters(conv, in_width, out_width, 7, stride=2)
        reparam_conv = weights / "proj.1.reparam_conv"
        weight = reparam_conv.take("weight", out_width, out_width, 1, 1)
        self.pointwise = Conv2d(
            weight.then(even_then_odd_columns, out_width, out_width, 1, 1),
            reparam_conv.take("bias", out_width),
        )

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        halves = op.Concat(self.even(op, x), self.odd(op, x), axis=1)
        return op.Gelu(self.pointwise(op, op.Gelu(halves)))


def build_vision_encoder_float(weights: Weights, config: VisionConfig, image_size: int) -> ir.Model:
    """Build the graph before it is quantised; see `build_vision_encoder`."""
    return build_vision_encoder(weights, config, image_size, PatchEmbed)


def quantized_products(model: ir.Model) -> list[str]:
    """Return the names of the weights that are quantised, in the order of the graph."""
    return [name for name in products_of(model) if QUANTIZED.search(name)]


def build_vision_encoder_qdq(
    weights: Weights, config: VisionConfig, image_size: int, ranges: Ranges
) -> ir.Model:
    """Build the vision encoder in QDQ form for one image size S.

    Args:
        weights: the checkpoint under VISION_PREFIX.
        config: the vision encoder's sizes.
        image_size: S, the side of the square input in pixels, a multiple of 64.
        ranges: the ranges of the quantised activations, read when the graph is written.

    Returns:
        A graph from pixel_values, float32 [B, 3, S, S] in 0..1, to image_hidden_states, float32
        [B, (S / 64)^2, hidden_size].

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    model = build_vision_encoder_float(weights, config, image_size)
    names = quantized_products(model)
    fold_factors(model, foldable_products(model, names), ranges)
    return quantize_products(model, names, ranges)


def build_vision_encoder_extremes(
    weights: Weights, config: VisionConfig, image_size: int
) -> tuple[ir.Model, dict[str, bool]]:
    """Build the float32 graph whose outputs are the extremes of the quantised activations.

    Args:
        weights: the checkpoint under VISION_PREFIX.
        config: the vision encoder's sizes.
        image_size: the side of the square input in pixels.

    Returns:
        The graph of `output_extremes`, and by the name of each weight, in the order of the outputs,
        whether the activation's channels can be divided by factors.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    model = build_vision_encoder_float(weights, config, image_size)
    names = quantized_products(model)
    foldable = set(foldable_products(model, names))
    return output_extremes(model, names), {name: name in foldable for name in names}
