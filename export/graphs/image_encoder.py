"""Vision encoder and projector as one ONNX graph: pixel_values -> image_features.

For runtimes that know a single graph for images. The tensors have the names and values that they
have in the two graphs.
"""

import onnx_ir as ir

from fastvlm_onnx.export.architecture.config import VISION_PATCH_SIZE, FastVLMConfig
from fastvlm_onnx.export.architecture.tensor_names import PROJECTOR_PREFIX, VISION_PREFIX
from fastvlm_onnx.export.graphs.layers import OPSET, Graph
from fastvlm_onnx.export.graphs.projector import project
from fastvlm_onnx.export.graphs.vision_encoder import FastViTHD
from fastvlm_onnx.export.graphs.vision_encoder_int8 import FastViTHD as FastViTHDInt8
from fastvlm_onnx.export.tensors.weights import Weights
from fastvlm_onnx.names import (
    BATCH_SIZE,
    IMAGE_ENCODER,
    IMAGE_FEATURES,
    NUM_IMAGE_TOKENS,
    PIXEL_VALUES,
)


def build_image_encoder(
    weights: Weights,
    config: FastVLMConfig,
    image_size: int,
    *,
    is_int8: bool = False,
    is_flat: bool = False,
    opset: int = OPSET,
) -> ir.Model:
    """Build the image encoder for one image size S.

    Args:
        weights: the checkpoint at its root.
        config: the sizes of the whole model.
        image_size: S, the side of the square input in pixels, a multiple of 64.
        is_int8: products are int8.
        is_flat: the features of all images are rows of one matrix.
        opset: the version of ONNX's own operators, where products are float32.

    Returns:
        A graph from pixel_values, float32 [B, 3, S, S] in 0..1, to image_features, float32
        [B, (S / 64)^2, decoder hidden_size], or [rows, decoder hidden_size] if flat.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    graph = Graph(IMAGE_ENCODER, OPSET if is_int8 else opset)
    op, width = graph.op, config.decoder.hidden_size
    pixel_values = graph.input(
        PIXEL_VALUES, ir.DataType.FLOAT, [BATCH_SIZE, 3, image_size, image_size]
    )
    encoder = FastViTHDInt8 if is_int8 else FastViTHD
    vision = encoder(weights / VISION_PREFIX.rstrip("."), config.vision, image_size)
    scope = weights / PROJECTOR_PREFIX.rstrip(".")
    features = project(op, scope, config, vision(op, pixel_values), is_int8=is_int8)
    shape: list[int | str] = [BATCH_SIZE, (image_size // VISION_PATCH_SIZE) ** 2, width]
    if is_flat:
        features, shape = op.Reshape(features, [-1, width]), [NUM_IMAGE_TOKENS, width]
    graph.output(IMAGE_FEATURES, features, shape)
    return graph.finish()
