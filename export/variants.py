"""What each precision is made of: which graphs, in which form, in which files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import onnx_ir as ir

import fastvlm_onnx
from fastvlm_onnx.errors import InputError, UnsupportedError
from fastvlm_onnx.export.architecture.config import VISION_PATCH_SIZE
from fastvlm_onnx.export.architecture.tensor_names import PROJECTOR_PREFIX, VISION_PREFIX
from fastvlm_onnx.export.checkpoint.reader import Checkpoint
from fastvlm_onnx.export.graphs.decoder import DecoderOperators, build_decoder, embedding_rows
from fastvlm_onnx.export.graphs.decoder_standard_operators import STANDARD_OPERATORS
from fastvlm_onnx.export.graphs.fixed_shapes import fix_axes
from fastvlm_onnx.export.graphs.float16 import convert_to_float16
from fastvlm_onnx.export.graphs.projector import build_projector
from fastvlm_onnx.export.graphs.vision_encoder import build_vision_encoder
from fastvlm_onnx.export.graphs.vision_encoder_int8 import build_vision_encoder_int8
from fastvlm_onnx.export.tensors.weights import Weights
from fastvlm_onnx.export.writing.token_embeddings import Embeddings, FloatEmbeddings, Int8Embeddings
from fastvlm_onnx.names import (
    BATCH_SIZE,
    DECODER,
    NUM_IMAGE_TOKENS,
    OPERATORS,
    PREFILL,
    PROJECTOR,
    graph_file,
    vision_encoder_file,
)
from fastvlm_onnx.package import Variant


@dataclass(frozen=True)
class Recipe:
    """The precision of each part.

    Attributes:
        vision: of vision encoder and projector.
        prefill: of a graph of its own for the prompt up to its last token; None where the decoder
            takes all of it.
        has_int8_embeddings: token embeddings in int8 instead of float.
    """

    vision: str
    decoder: str
    prefill: str | None = None
    has_int8_embeddings: bool = False


RECIPES: Mapping[str, Recipe] = {
    "fp32": Recipe("fp32", "fp32"),
    "fp16": Recipe("fp16", "fp16"),
    "int8": Recipe("int8", "int8", has_int8_embeddings=True),
    "int4": Recipe("int8", "int4", has_int8_embeddings=True),
    # Many tokens at once are bound by arithmetic, where int8 is fastest; one at a time by reading
    # the weights, where int4 is.
    "fast": Recipe("int8", "int4", prefill="int8", has_int8_embeddings=True),
    # CoreML takes no decoder: that stays on the CPU.
    "coreml": Recipe("coreml", "int4", has_int8_embeddings=True),
    # CUDA has float16 convolutions of every kind, but not bfloat16 ones.
    "bf16": Recipe("fp16", "bf16"),
    "int4_cuda": Recipe("fp16", "int4_cuda", has_int8_embeddings=True),
}


DECODER_OPERATORS: Mapping[str, DecoderOperators] = {
    "microsoft": DecoderOperators(),
    "standard": STANDARD_OPERATORS,
}
# GroupQueryAttention's rotary embedding on the CPU takes multiples of this.
FUSED_HEAD_DIM: Final = 16
# ONNX has no product of 8 or 4 bits whose activations are scaled by the token.
STANDARD_PRECISIONS: Final = ("fp32", "fp16")


def build_vision_encoder_fp16(*args: Any) -> ir.Model:
    return convert_to_float16(build_vision_encoder(*args))


def build_vision_encoder_coreml(*args: Any) -> ir.Model:
    return fix_axes(build_vision_encoder_fp16(*args), {BATCH_SIZE: 1})


BUILD_VISION_ENCODER: Mapping[str, Callable[..., ir.Model]] = {
    "fp32": build_vision_encoder,
    "fp16": build_vision_encoder_fp16,
    "int8": build_vision_encoder_int8,
    "coreml": build_vision_encoder_coreml,
}


@dataclass(frozen=True)
class Parts:
    """Everything of some variants that is written.

    Attributes:
        models: by file name.
        inline: names of those that hold their weights themselves.
        embeddings: of tokens, in each form that a variant wants.
        shares_head: lm_head is the embedding matrix.
    """

    models: Mapping[str, ir.Model]
    inline: Sequence[str]
    embeddings: Sequence[Embeddings]
    shares_head: bool
    variants: Mapping[str, Variant]


def check_variants(precisions: Sequence[str], operators: str) -> None:
    """Refuse what is not built.

    Raises:
        InputError: an unknown precision or set of operators.
        UnsupportedError: a precision that these operators cannot express.
    """
    for precision in precisions:
        if precision not in RECIPES:
            raise InputError(
                f"precision {precision!r} is unknown; expected one of {', '.join(RECIPES)}."
            )
        if operators == "standard" and precision not in STANDARD_PRECISIONS:
            raise UnsupportedError(
                f"precision {precision} needs com.microsoft operators; with standard ones there "
                f"are {', '.join(STANDARD_PRECISIONS)}."
            )
    if operators not in OPERATORS:
        raise InputError(f"operators are {operators!r}, expected one of {', '.join(OPERATORS)}.")


def declare(
    checkpoint: Checkpoint, precisions: Sequence[str], sizes: Sequence[int], operators: str
) -> Parts:
    """Declare the graphs of some precisions; what several of them share comes once.

    Args:
        operators: of the decoder, one of `names.OPERATORS`.

    Raises:
        CheckpointError: a tensor is missing, surplus, or of another shape.
        UnsupportedError: more than one image size for CoreML, or heads of a width that the fused
            attention does not take.
    """
    config, version = checkpoint.config, fastvlm_onnx.__version__
    head_dim = config.decoder.head_dim
    if operators == "microsoft" and head_dim % FUSED_HEAD_DIM:
        raise UnsupportedError(
            f"{checkpoint.name}: heads are {head_dim} wide, and ONNX Runtime's fused attention "
            f"takes multiples of {FUSED_HEAD_DIM}; export with --operators standard."
        )
    weights = Weights(checkpoint.tensors)
    vision = weights / VISION_PREFIX.rstrip(".")
    projector = weights / PROJECTOR_PREFIX.rstrip(".")
    rows = embedding_rows(weights, config.decoder)
    models: dict[str, ir.Model] = {}
    inline: list[str] = []
    embeddings: dict[str, Embeddings] = {}
    variants: dict[str, Variant] = {}
    for precision in precisions:
        recipe = RECIPES[precision]
        encoder_files = {size: vision_encoder_file(size, recipe.vision) for size in sizes}
        projector_file = graph_file(PROJECTOR, recipe.vision)
        decoder_file = graph_file(DECODER, recipe.decoder, operators)
        if projector_file not in models:
            for size, file in encoder_files.items():
                models[file] = BUILD_VISION_ENCODER[recipe.vision](
                    vision, config.vision, size, version
                )
            models[projector_file] = build_projector(projector, config, version, recipe.vision)
            if recipe.vision == "coreml":
                fix_axes(models[projector_file], _only_shape(sizes))
                # Not every version of the provider reads weights from a file beside the graph.
                inline += [*encoder_files.values(), projector_file]
        if decoder_file not in models:
            models[decoder_file] = build_decoder(
                weights,
                config.decoder,
                version,
                recipe.decoder,
                operators=DECODER_OPERATORS[operators],
            )
        prefill_file = decoder_file
        if recipe.prefill:
            prefill_file = graph_file(PREFILL, recipe.prefill)
            models[prefill_file] = build_decoder(
                weights, config.decoder, version, recipe.prefill, fills_cache_only=True
            )
        embedding = Int8Embeddings(rows) if recipe.has_int8_embeddings else FloatEmbeddings(rows)
        embeddings.setdefault(embedding.file_name, embedding)
        variants[precision] = Variant(
            vision_encoder={str(size): file for size, file in encoder_files.items()},
            projector=projector_file,
            prefill=prefill_file,
            decoder=decoder_file,
            embed_tokens=embedding.file_name,
        )
    weights.check_all_taken()
    return Parts(models, inline, list(embeddings.values()), config.decoder.is_tied, variants)


def _only_shape(sizes: Sequence[int]) -> dict[str, int]:
    """The projector's axes for CoreML, which wants numbers."""
    if len(sizes) > 1:
        raise UnsupportedError(
            f"image sizes are {', '.join(map(str, sizes))}, and a projector for CoreML has one "
            "fixed size; export a package for each."
        )
    return {BATCH_SIZE: 1, NUM_IMAGE_TOKENS: (sizes[0] // VISION_PATCH_SIZE) ** 2}
