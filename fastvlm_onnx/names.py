"""Names that both sides and other runtimes rely on: graphs, tensors, axes, files.

A change of a name here changes the format of packages.
"""

from typing import Final

# --- graphs and their tensors ------------------------------------------------------------------

VISION_ENCODER: Final = "vision_encoder"
PROJECTOR: Final = "projector"
DECODER: Final = "decoder"
PREFILL: Final = "prefill"  # the decoder over a prompt, where that is a separate graph
DECODER_LAYERS: Final = "decoder_layers"  # the decoder up to lm_head's input
LM_HEAD: Final = "lm_head"
LM_HEAD_SCREEN: Final = "lm_head_screen"
# Graphs of layouts for other runtimes.
IMAGE_ENCODER: Final = "image_encoder"  # vision encoder and projector
EMBED_TOKENS: Final = "embed_tokens"

PIXEL_VALUES: Final = "pixel_values"
IMAGE_HIDDEN_STATES: Final = "image_hidden_states"
IMAGE_FEATURES: Final = "image_features"
INPUT_IDS: Final = "input_ids"
INPUTS_EMBEDS: Final = "inputs_embeds"
ATTENTION_MASK: Final = "attention_mask"
LOGITS: Final = "logits"
HIDDEN_STATES: Final = "hidden_states"  # lm_head's input: the last position, normalised
NUM_CANDIDATES: Final = "num_candidates"
TOKEN_IDS: Final = "token_ids"
TOKEN_LOGITS: Final = "token_logits"
SCREENED_LOGITS: Final = "screened_logits"


def past_names(layer: int) -> tuple[str, str]:
    """Return the decoder inputs with the keys and the values of a layer."""
    return f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"


def present_names(layer: int) -> tuple[str, str]:
    """Return the decoder outputs with the keys and the values of a layer."""
    return f"present.{layer}.key", f"present.{layer}.value"


def is_past(name: str) -> bool:
    """Return whether a decoder input holds keys or values."""
    return name.startswith("past_key_values.")


def present_name(past: str) -> str:
    """Return the name of the present output that matches a past input."""
    return past.replace("past_key_values.", "present.")


# --- symbolic axes: axes that are not numbers ----------------------------------------------------

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
GOLDEN_FILE: Final = "golden.json"

IMAGE_TOKEN: Final = "<image>"


def vision_encoder_file(image_size: int, precision: str) -> str:
    """Return the file name of the vision encoder for one image size."""
    return f"vision_encoder.{image_size}.{precision}.onnx"


def graph_file(graph: str, precision: str, operators: str = "microsoft") -> str:
    """Return the file name of the projector or a decoder graph."""
    infix = "" if operators == "microsoft" else f".{operators}"
    return f"{graph}{infix}.{precision}.onnx"


def weights_file(graph: str, precision: str) -> str:
    """Return the file name of the weights of a graph.

    All image sizes of a vision encoder share a file, and so do all decoder graphs.
    """
    return f"{graph}.{precision}.onnx.data"


def scale_file(embed_tokens_file: str) -> str:
    """Return the file name of the scales of int8 token embeddings."""
    return embed_tokens_file.replace(".npy", ".scale.npy")
