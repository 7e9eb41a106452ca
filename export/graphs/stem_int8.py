"""The stem of the int8 vision encoder, computed in strips of image rows.

Source: as vision_encoder.py, where the stem is `patch_embed`.
"""

from typing import Final

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from fastvlm_onnx.export.graphs.layers import Op, parameter, register_parameters
from fastvlm_onnx.export.graphs.layers_int8 import (
    Int8Linear,
    fewest_parts,
    pointwise,
    scan,
    to_channels_first,
    to_channels_last,
)
from fastvlm_onnx.export.tensors.lazy_array import FloatArray
from fastvlm_onnx.export.tensors.weights import Weights
from fastvlm_onnx.names import BATCH_SIZE

# The first strip, and the rows that the two 3x3 convolutions of stride 2 read:
#
#     image row     -3  -2  -1   0   1   2   3   4   5   6   7
#     mask channel   1   1   1   0   0   0   0   0   0   0   0
#     conv 1 row     |__-1___|___0___|___1___|___2___|___3___|
#     conv 2 row         |_______0_______|_______1_______|
#
# A strip reads HALO_ROWS above its own rows and none below. In the first strip the halo is outside
# the image. There, convolution 2 must read zeros, and convolution 1 alone would give its bias. The
# mask channel is 1 outside the image. Its only weight is at the centre of the kernel and makes
# row -1 so low that GELU gives 0. All other rows have their centre inside the image, where the mask
# is 0.
HALO_ROWS: Final = 3
CHANNELS: Final = 4  # red, green, blue and the mask
MASK_WEIGHT: Final = -1e6


class Stem(nn.Module):
    """Three convolutions that quarter the sides of the image, with a GELU after each.

    They are a full, a depthwise and a pointwise convolution. The output of the first is by far the
    largest tensor of the network, so all three are computed in strips of image rows.
    """

    def __init__(self, weights: Weights, width: int, image_size: int) -> None:
        super().__init__()
        self.width, self.image_size = width, image_size
        # One row of the last output needs two rows of the first convolution's output.
        row_bytes = width * 4 * image_size
        self.strips = fewest_parts(image_size // 4, row_bytes)
        full, depthwise = weights / "0.reparam_conv", weights / "1.reparam_conv"
        kernel = full.take("weight", width, 3, 3, 3)
        self.full_weight = parameter(kernel.then(with_mask_channel, width, CHANNELS, 3, 3))
        self.full_bias = parameter(full.take("bias", width))
        self.depthwise_weight = parameter(depthwise.take("weight", width, 1, 3, 3))
        self.depthwise_bias = parameter(depthwise.take("bias", width))
        last = weights / "2.reparam_conv"
        self.pointwise = Int8Linear(
            pointwise(last.take("weight", width, width, 1, 1)), last.take("bias", width)
        )

    def forward(self, op: Op, pixel_values: ir.Value) -> ir.Value:
        above = [0, 0, HALO_ROWS, 0, 0, 0, 0, 0]
        mask = op.Mul(op.Slice(pixel_values, [0], [1], [1]), 0.0)
        padded = op.Concat(
            op.Pad(pixel_values, above), op.Pad(mask, above, 1.0), axis=1
        )  # [B, 4, image_size + 3, image_size]
        rows = self.image_size // self.strips
        rows_of_strips = np.arange(self.strips)[:, None] * rows + np.arange(rows + HALO_ROWS)
        overlapping = op.Gather(
            padded, op.Constant(value=ir.tensor(rows_of_strips)), axis=2
        )  # [B, 4, strips, rows + 3, image_size]
        register_parameters(op, self.pointwise)

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
                    [BATCH_SIZE, CHANNELS, rows + HALO_ROWS, self.image_size],
                )
            ],
            (ir.DataType.FLOAT, [BATCH_SIZE, side // self.strips, side, self.width]),
        )
        tokens = op.Reshape(
            op.Transpose(strips, perm=[1, 0, 2, 3, 4]), [-1, side, side, self.width]
        )
        return to_channels_first(op, tokens)


def halve(op: Op, x: ir.Value, weight: ir.Value, bias: ir.Value, groups: int) -> ir.Value:
    """Declare a 3x3 convolution of stride 2 whose input includes the row above."""
    pads = [0, 1, 0, 1]
    return op.Conv(x, weight, bias, kernel_shape=[3, 3], strides=[2, 2], pads=pads, group=groups)


def with_mask_channel(kernel: FloatArray) -> FloatArray:
    """Add the weights of the mask channel to a kernel: [C, 3, 3, 3] -> [C, 4, 3, 3]."""
    mask = np.zeros_like(kernel[:, :1])
    mask[:, 0, 1, 1] = MASK_WEIGHT
    return np.concatenate([kernel, mask], axis=1)
