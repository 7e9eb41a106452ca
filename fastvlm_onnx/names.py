"""Names that both sides, and other runtimes, rely on: tensors, axes, files, precisions.

Changing one here changes the format.
"""

from typing import Final

# --- graphs and their tensors ------------------------------------------------------------------

VISION_ENCODER: Final = "vision_encoder"
PROJECTOR: Final = "projector"
DECODER: Final = "decoder"
PREFILL: Final = "prefill"  # the decoder over a prompt, when that is a graph of its own
EMBED_TOKENS: Final = "embed_tokens"

PIXEL_VALUES: Final = "pixel_values"
IMAGE_HIDDEN_STATES: Final = "image_hidden_states"
IMAGE_FEATURES: Final = "image_features"
INPUTS_EMBEDS: Final = "inputs_embeds"
ATTENTION_MASK: Final = "attention_mask"
LOGITS: Final = "logits"


def past_names(layer: int) -> tuple[str, str]:
    """Decoder inputs that hold layer `layer`'s keys and values."""
    return f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"


def present_names(layer: int) -> tuple[str, str]:
    """Decoder outputs that hold layer `layer`'s keys and values."""
    return f"present.{layer}.key", f"present.{layer}.value"


def is_past(name: str) -> bool:
    """Whether a decoder's input holds keys or values."""
    return name.startswith("past_key_values.")


def present_name(past: str) -> str:
    """The output that goes on where this input ends."""
    return past.replace("past_key_values.", "present.")


# --- symbolic axes: every one that is not a number ---------------------------------------------

BATCH_SIZE: Final = "batch_size"
SEQUENCE_LENGTH: Final = "sequence_length"
PAST_SEQUENCE_LENGTH: Final = "past_sequence_length"
TOTAL_SEQUENCE_LENGTH: Final = "total_sequence_length"
NUM_IMAGE_TOKENS: Final = "num_image_tokens"

# --- files of a package ------------------------------------------------------------------------

MANIFEST_FILE: Final = "fastvlm.json"
TOKENIZER_FILE: Final = "tokenizer.json"
EMBED_TOKENS_FILE: Final = "embed_tokens.npy"
EMBED_TOKENS_INT8_FILE: Final = "embed_tokens.int8.npy"
LICENSE_FILE: Final = "LICENSE_MODEL"
CARD_FILE: Final = "README.md"

# What a decoder is made of: ONNX Runtime's fused operators, or ONNX's own alone.
OPERATORS: Final = ("microsoft", "standard")
PRECISIONS: Final = ("fp32", "fp16", "int8", "int4", "fast")
# What only one provider wants: a vision encoder and projector that CoreML takes whole, decoders
# whose attention CUDA has kernels for.
DEVICE_PRECISIONS: Final = ("coreml", "bf16", "int4_cuda")
TARGETS: Final = {"coreml": ("coreml",), "cuda": ("bf16", "fp16", "int4_cuda")}
IMAGE_TOKEN: Final = "<image>"


def vision_encoder_file(image_size: int, precision: str) -> str:
    return f"vision_encoder.{image_size}.{precision}.onnx"


def graph_file(graph: str, precision: str, operators: str = "microsoft") -> str:
    """File name of the projector or the decoder."""
    form = "" if operators == "microsoft" else f".{operators}"
    return f"{graph}{form}.{precision}.onnx"


def weights_file(graph_file_name: str) -> str:
    """The weights beside a graph.

    A vision encoder's image sizes share one file, and so do a decoder and its prefill:
    `vision_encoder.1024.fp32.onnx` -> `vision_encoder.fp32.onnx.data`, and
    `decoder.standard.fp32.onnx` -> `decoder.fp32.onnx.data`.
    """
    graph, *_, precision, suffix = graph_file_name.split(".")
    return ".".join((DECODER if graph == PREFILL else graph, precision, suffix, "data"))


def has_int8_products(graph_file_name: str) -> bool:
    """Whether a graph multiplies uint8 activations by int8 weights, at least on the CPU."""
    *_, precision, _ = graph_file_name.split(".")
    return precision == "int8"


def scale_file(embed_tokens_file: str) -> str:
    """The scales beside int8 token embeddings."""
    return embed_tokens_file.replace(".npy", ".scale.npy")
