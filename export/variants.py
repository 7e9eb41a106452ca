"""Declare the graphs of variants: one function for each graph, for every graph precision."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import onnx_ir as ir

from fastvlm_onnx.errors import InputError, UnsupportedError
from fastvlm_onnx.export.architecture.config import VISION_PATCH_SIZE, FastVLMConfig
from fastvlm_onnx.export.architecture.tensor_names import PROJECTOR_PREFIX, VISION_PREFIX
from fastvlm_onnx.export.checkpoint.reader import Checkpoint
from fastvlm_onnx.export.graphs.decoder import (
    DecoderOperators,
    build_decoder,
    embedding_rows,
)
from fastvlm_onnx.export.graphs.decoder_precisions import DECODER_PRECISIONS, DecoderPrecision
from fastvlm_onnx.export.graphs.decoder_standard_operators import STANDARD_OPERATORS
from fastvlm_onnx.export.graphs.fixed_shapes import fix_axes
from fastvlm_onnx.export.graphs.float16 import convert_to_float16
from fastvlm_onnx.export.graphs.image_encoder import build_image_encoder
from fastvlm_onnx.export.graphs.lm_head import build_lm_head, build_lm_head_screen
from fastvlm_onnx.export.graphs.projector import build_projector
from fastvlm_onnx.export.graphs.qdq import Ranges
from fastvlm_onnx.export.graphs.vision_encoder import build_vision_encoder
from fastvlm_onnx.export.graphs.vision_encoder_int8 import build_vision_encoder_int8
from fastvlm_onnx.export.graphs.vision_encoder_qdq import build_vision_encoder_qdq
from fastvlm_onnx.export.tensors.quantized_weight import CalibratedWeights
from fastvlm_onnx.export.tensors.weights import Weights
from fastvlm_onnx.export.writing.graph_set import GraphSet, UnwrittenGraph
from fastvlm_onnx.export.writing.token_embeddings import Embeddings, FloatEmbeddings, Int8Embeddings
from fastvlm_onnx.names import (
    BATCH_SIZE,
    DECODER,
    DECODER_LAYERS,
    LM_HEAD,
    LM_HEAD_SCREEN,
    NUM_IMAGE_TOKENS,
    PREFILL,
    PROJECTOR,
    VISION_ENCODER,
    graph_file,
    vision_encoder_file,
    weights_file,
)
from fastvlm_onnx.package import ProviderGraphs, SplitDecoder, Variant
from fastvlm_onnx.variants import OPERATOR_SETS, QDQ_TARGET, VARIANTS, VariantSpec, takes_qdq

DECODER_OPERATORS: Final[Mapping[str, DecoderOperators]] = {
    "microsoft": DecoderOperators(),
    "standard": STANDARD_OPERATORS,
}
# The graph precision of a vision encoder in QDQ form, for its file names.
QDQ: Final = "qdq"
QDQ_WEIGHTS: Final = weights_file(VISION_ENCODER, QDQ)
# The tensors of lm_head that a decoder has beside those of the decoder whose weights it shares.
CHANNEL_HEAD: Final = "lm_head.by_channel."
# GroupQueryAttention's rotary embedding on the CPU takes multiples of this number.
FUSED_HEAD_DIM: Final = 16


Calibrated = Mapping[str, CalibratedWeights]
"""Weights that a calibration quantised, by their form in `DecoderPrecision.calibrated_form`."""

NOT_CALIBRATED: Final[Calibrated] = {}


@dataclass(frozen=True)
class VisionPrecision:
    """How a vision encoder and a projector of one graph precision are built.

    Attributes:
        is_int8: products are int8.
        is_float16: weights and activations are float16; inputs and outputs stay float32.
        has_fixed_shapes: every axis is a number, and the graph file holds the weights.
    """

    is_int8: bool = False
    is_float16: bool = False
    has_fixed_shapes: bool = False


VISION_PRECISIONS: Final[Mapping[str, VisionPrecision]] = {
    "fp32": VisionPrecision(),
    "fp16": VisionPrecision(is_float16=True),
    "int8": VisionPrecision(is_int8=True),
    # Some versions of the CoreML provider read no weights from a file beside the graph.
    "coreml": VisionPrecision(is_float16=True, has_fixed_shapes=True),
}


def check_variants(variants: Sequence[str], operators: str) -> None:
    """Refuse variants that are not built.

    Raises:
        InputError: a variant or the set of operators is unknown.
        UnsupportedError: the operators cannot express a variant.
    """
    for name in variants:
        if name not in VARIANTS:
            raise InputError(
                f"precision {name!r} is unknown; expected one of {', '.join(VARIANTS)}."
            )
        # Opset 17 has no product of 8 or 4 bits with a scale for each token's activations.
        if operators == "standard" and operators not in VARIANTS[name].operator_sets:
            built = [spec.name for spec in VARIANTS.values() if operators in spec.operator_sets]
            raise UnsupportedError(
                f"precision {name} needs com.microsoft operators; with standard ones there "
                f"are {', '.join(built)}."
            )
    if operators not in OPERATOR_SETS:
        raise InputError(
            f"operators are {operators!r}, expected one of {', '.join(OPERATOR_SETS)}."
        )


def check_qdq(variants: Sequence[str]) -> None:
    """Refuse a vision encoder in QDQ form for variants of which none takes it.

    Raises:
        InputError: no variant has int8 vision.
    """
    if not any(map(takes_qdq, variants)):
        raise InputError(
            f"--target {QDQ_TARGET} adds a vision encoder to variants with int8 vision, and "
            f"{', '.join(variants)} has none; add one of "
            f"{', '.join(filter(takes_qdq, VARIANTS))} with --precision."
        )


def calibrated_precisions(variants: Sequence[str]) -> dict[str, DecoderPrecision]:
    """Return a decoder precision of each form of weights that a calibration quantises, by form.

    All decoders of these variants in one form have the same weights.

    Raises:
        InputError: no variant has such weights.
    """
    found: dict[str, DecoderPrecision] = {}
    for name in variants:
        for form, precision in _calibrated_precisions(name).items():
            found.setdefault(form, precision)
    if not found:
        raise InputError(
            f"--calibrate quantises int4 and int8 decoders, and {', '.join(variants)} has none; "
            f"add one of {', '.join(calibratable(VARIANTS))} with --precision, or leave "
            "--calibrate out."
        )
    return found


def calibratable(variants: Iterable[str]) -> list[str]:
    """Return the names of the variants whose decoders a calibration quantises."""
    return [name for name in variants if _calibrated_precisions(name)]


def qdq_graphs(graph_set: GraphSet) -> list[str]:
    """Return the files of the vision encoders in QDQ form."""
    return [file for file, graph in graph_set.graphs.items() if graph.weights_file == QDQ_WEIGHTS]


def calibrated_graphs(graph_set: GraphSet) -> list[str]:
    """Return the files of the decoders that a calibration quantises."""
    variants = [graph_set.variants[name] for name in calibratable(graph_set.variants)]
    wholes = [file for variant in variants for file in (variant.decoder, variant.prefill)]
    parts = [v.split_decoder.decoder_layers for v in variants if v.split_decoder]
    return list(dict.fromkeys((*wholes, *parts)))


def variants_to_split(variants: Sequence[str]) -> list[str]:
    """Return the variants whose decoder can be exported in parts.

    Raises:
        InputError: no variant's decoder can.
    """
    found = [name for name in variants if VARIANTS[name].can_split]
    if not found:
        splittable = [name for name, spec in VARIANTS.items() if spec.can_split]
        raise InputError(
            f"--split-decoder is for {' and '.join(splittable)}, and the variants are "
            f"{', '.join(variants)}; add one with --precision, or leave --split-decoder out."
        )
    return found


def _calibrated_precisions(variant: str) -> dict[str, DecoderPrecision]:
    spec = VARIANTS[variant]
    names = (spec.decoder_precision, spec.prefill_precision)
    precisions = [DECODER_PRECISIONS[name] for name in names if name]
    return {each.calibrated_form: each for each in precisions if each.calibrated_form}


def build_graphs(
    checkpoint: Checkpoint,
    variants: Sequence[str],
    sizes: Sequence[int],
    operators: str,
    calibrated: Calibrated = NOT_CALIBRATED,
    ranges: Ranges | None = None,
    *,
    split: Collection[str] = (),
) -> GraphSet:
    """Declare the graphs of variants; a graph that several variants share is declared once.

    Args:
        checkpoint: the checkpoint with the weights.
        variants: names of the variants.
        sizes: image sizes in pixels.
        operators: the set of operators, one of OPERATOR_SETS.
        calibrated: the weights that a calibration quantised, by their form.
        ranges: the ranges of the vision encoder's activations, read when a graph is written; None
            for no vision encoders in QDQ form.
        split: names of the variants whose decoder is also declared in parts.

    Raises:
        CheckpointError: a tensor is missing, surplus, or has another shape.
        UnsupportedError: CoreML has several image sizes, or the fused attention does not take
            heads of this width.
    """
    specs = [VARIANTS[name] for name in variants]
    _check_buildable(checkpoint, specs, sizes, operators)
    config, weights = checkpoint.config, Weights(checkpoint.tensors)
    opset = DECODER_OPERATORS[operators].opset
    rows = embedding_rows(weights, config.decoder)
    graphs: dict[str, UnwrittenGraph] = {}
    embeddings: dict[str, Embeddings] = {}
    files: dict[str, Variant] = {}

    def add(file: str, build: Callable[[], UnwrittenGraph]) -> str:
        if file not in graphs:
            graphs[file] = build()
        return file

    for spec in specs:
        vision, decoder = spec.vision_precision, spec.decoder_precision
        encoder_files = {
            str(size): add(
                vision_encoder_file(size, vision),
                partial(_vision_encoder, weights, config, vision, size, opset),
            )
            for size in sizes
        }
        projector_file = add(
            graph_file(PROJECTOR, vision),
            partial(_projector, weights, config, vision, sizes[0], opset),
        )
        decoder_file = add(
            graph_file(DECODER, decoder, operators),
            partial(_decoder, weights, config, decoder, operators, calibrated),
        )
        prefill_file = decoder_file
        if prefill := spec.prefill_precision:
            prefill_file = add(
                graph_file(PREFILL, prefill),
                partial(_prefill, weights, config, prefill, calibrated),
            )
        split_decoder = None
        if spec.splits or spec.name in split:
            split_decoder = SplitDecoder(
                add(
                    graph_file(DECODER_LAYERS, decoder),
                    partial(_decoder_layers, weights, config, decoder, calibrated),
                ),
                add(graph_file(LM_HEAD, "int8"), partial(_lm_head, weights, config, decoder)),
                add(
                    graph_file(LM_HEAD_SCREEN, "int4"),
                    partial(_lm_head_screen, weights, config, decoder),
                ),
            )
        per_provider = {}
        if ranges is not None and takes_qdq(spec.name):
            qdq_files = {
                str(size): add(
                    vision_encoder_file(size, QDQ),
                    partial(_vision_encoder_qdq, weights, config, size, ranges),
                )
                for size in sizes
            }
            per_provider[QDQ_TARGET] = ProviderGraphs(vision_encoder=qdq_files)
        matrix = Int8Embeddings(rows) if spec.has_int8_embeddings else FloatEmbeddings(rows)
        embeddings.setdefault(matrix.file_name, matrix)
        second_pass = spec.calibrated_second_pass if calibrated else spec.second_pass
        files[spec.name] = Variant(
            vision_encoder=encoder_files,
            projector=projector_file,
            prefill=prefill_file,
            decoder=decoder_file,
            embed_tokens=matrix.file_name,
            split_decoder=split_decoder,
            second_pass=second_pass if split_decoder else None,
            per_provider=per_provider,
        )
    weights.check_all_taken()
    return GraphSet(graphs, list(embeddings.values()), config.decoder.is_tied, files)


def _check_buildable(
    checkpoint: Checkpoint, specs: Sequence[VariantSpec], sizes: Sequence[int], operators: str
) -> None:
    head_dim = checkpoint.config.decoder.head_dim
    if operators == "microsoft" and head_dim % FUSED_HEAD_DIM:
        raise UnsupportedError(
            f"{checkpoint.name}: heads are {head_dim} wide, and ONNX Runtime's fused attention "
            f"takes multiples of {FUSED_HEAD_DIM}; export with --operators standard."
        )
    is_fixed = any(VISION_PRECISIONS[spec.vision_precision].has_fixed_shapes for spec in specs)
    if is_fixed and len(sizes) > 1:
        raise UnsupportedError(
            f"image sizes are {', '.join(map(str, sizes))}, and a projector for CoreML has one "
            "fixed size; export a package for each."
        )


# --- one function for each graph -----------------------------------------------------------------


def _vision_encoder(
    weights: Weights, config: FastVLMConfig, precision: str, size: int, opset: int
) -> UnwrittenGraph:
    scope = weights / VISION_PREFIX.rstrip(".")
    if VISION_PRECISIONS[precision].is_int8:
        model = build_vision_encoder_int8(scope, config.vision, size)
    else:
        model = build_vision_encoder(scope, config.vision, size, opset=opset)
    return _vision_graph(VISION_ENCODER, model, precision, {BATCH_SIZE: 1})


def image_encoder(checkpoint: Checkpoint, precision: str, size: int, *, is_flat: bool) -> ir.Model:
    """Declare vision encoder and projector as one graph, for layouts that know one.

    Args:
        checkpoint: the checkpoint with the weights.
        precision: a key of VISION_PRECISIONS without fixed shapes.
        size: side of the square input in pixels.
        is_flat: the features of all images are rows of one matrix.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    form = VISION_PRECISIONS[precision]
    model = build_image_encoder(
        Weights(checkpoint.tensors), checkpoint.config, size, is_int8=form.is_int8, is_flat=is_flat
    )
    return convert_to_float16(model) if form.is_float16 else model


def _vision_encoder_qdq(
    weights: Weights, config: FastVLMConfig, size: int, ranges: Ranges
) -> UnwrittenGraph:
    scope = weights / VISION_PREFIX.rstrip(".")
    model = build_vision_encoder_qdq(scope, config.vision, size, ranges)
    return UnwrittenGraph(model, QDQ_WEIGHTS)


def _projector(
    weights: Weights, config: FastVLMConfig, precision: str, size: int, opset: int
) -> UnwrittenGraph:
    is_int8 = VISION_PRECISIONS[precision].is_int8
    scope = weights / PROJECTOR_PREFIX.rstrip(".")
    model = build_projector(scope, config, is_int8=is_int8, opset=opset)
    num_image_tokens = (size // VISION_PATCH_SIZE) ** 2
    axes = {BATCH_SIZE: 1, NUM_IMAGE_TOKENS: num_image_tokens}
    return _vision_graph(PROJECTOR, model, precision, axes)


def _vision_graph(
    graph: str, model: ir.Model, precision: str, fixed_axes: Mapping[str, int]
) -> UnwrittenGraph:
    form = VISION_PRECISIONS[precision]
    if form.is_float16:
        model = convert_to_float16(model)
    if form.has_fixed_shapes:
        return UnwrittenGraph(fix_axes(model, fixed_axes), weights_file=None)
    return UnwrittenGraph(model, weights_file(graph, precision))


def _decoder(
    weights: Weights,
    config: FastVLMConfig,
    precision: str,
    operators: str,
    calibrated: Calibrated,
) -> UnwrittenGraph:
    model = build_decoder(
        weights,
        config.decoder,
        precision,
        operators=DECODER_OPERATORS[operators],
        calibrated=_in_form_of(precision, calibrated),
    )
    shared = DECODER_PRECISIONS[precision].shared_weights
    if shared is None:
        return UnwrittenGraph(model, weights_file(DECODER, precision))
    # The other decoder's file stays as it is, whether both are exported or one.
    own_file = weights_file(LM_HEAD, precision)
    own_tensors = [name for name in model.graph.initializers if name.startswith(CHANNEL_HEAD)]
    return UnwrittenGraph(
        model, weights_file(DECODER, shared), dict.fromkeys(own_tensors, own_file)
    )


def _in_form_of(precision: str, calibrated: Calibrated) -> CalibratedWeights | None:
    form = DECODER_PRECISIONS[precision].calibrated_form
    return calibrated.get(form) if form else None


def _prefill(
    weights: Weights, config: FastVLMConfig, precision: str, calibrated: Calibrated
) -> UnwrittenGraph:
    model = build_decoder(
        weights,
        config.decoder,
        precision,
        has_lm_head=False,
        calibrated=_in_form_of(precision, calibrated),
    )
    # A decoder of the same precision shares the weights.
    return UnwrittenGraph(model, weights_file(DECODER, precision))


def _decoder_layers(
    weights: Weights, config: FastVLMConfig, precision: str, calibrated: Calibrated
) -> UnwrittenGraph:
    model = build_decoder(
        weights,
        config.decoder,
        precision,
        has_lm_head=False,
        calibrated=_in_form_of(precision, calibrated),
    )
    return UnwrittenGraph(model, weights_file(DECODER, precision))


def _lm_head(weights: Weights, config: FastVLMConfig, precision: str) -> UnwrittenGraph:
    return UnwrittenGraph(build_lm_head(weights, config.decoder), weights_file(DECODER, precision))


def _lm_head_screen(weights: Weights, config: FastVLMConfig, precision: str) -> UnwrittenGraph:
    # Only a screened variant reads the int4 weights. The int8 weights are the decoder's.
    decoder_file = weights_file(DECODER, precision)
    return UnwrittenGraph(
        build_lm_head_screen(weights, config.decoder),
        weights_file(LM_HEAD_SCREEN, "int4"),
        other_files={"lm_head.weight": decoder_file, "lm_head.scales": decoder_file},
    )
