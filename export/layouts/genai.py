"""Files that let onnxruntime-genai open a package: two configurations and two small graphs.

The graphs read the weights and the token embeddings that the package has. onnxruntime-genai takes
one model from a folder, so one variant of the package is chosen.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import onnx_ir as ir

from fastvlm_onnx.errors import InputError
from fastvlm_onnx.export.checkpoint.reader import Checkpoint
from fastvlm_onnx.export.graphs.decoder import embedding_rows
from fastvlm_onnx.export.graphs.projector import MODULE
from fastvlm_onnx.export.graphs.token_embeddings import build_token_embeddings
from fastvlm_onnx.export.tensors.weights import Weights
from fastvlm_onnx.export.variants import VISION_PRECISIONS, image_encoder
from fastvlm_onnx.export.writing.graph_set import GraphSet, UnwrittenGraph
from fastvlm_onnx.names import (
    ATTENTION_MASK,
    EMBED_TOKENS,
    IMAGE_FEATURES,
    INPUT_IDS,
    INPUTS_EMBEDS,
    LOGITS,
    PIXEL_VALUES,
    PROJECTOR,
    VISION_ENCODER,
    scale_file,
    weights_file,
)
from fastvlm_onnx.variants import VARIANTS

CONFIG_FILE: Final = "genai_config.json"
# The type of onnxruntime-genai that runs a vision graph, an embedding graph and a decoder, and
# takes any picture that the caller has preprocessed.
MODEL_TYPE: Final = "gemma3"


def check_genai(variants: Sequence[str]) -> str:
    """Return the variant that onnxruntime-genai is to run: the first of these that it can.

    Raises:
        InputError: it can run none of them.
    """
    for name in variants:
        if fits_genai(name):
            return name
    able = [name for name in VARIANTS if fits_genai(name)]
    raise InputError(
        f"--layout genai is for one of {', '.join(able)}, and the variants are "
        f"{', '.join(variants)}; add one with --precision."
    )


def fits_genai(variant: str) -> bool:
    """Return whether onnxruntime-genai runs a variant: a single decoder, of float32 embeddings."""
    spec = VARIANTS[variant]
    is_whole = spec.prefill_precision is None
    return is_whole and not VISION_PRECISIONS[spec.vision_precision].has_fixed_shapes


def with_genai_graphs(
    graph_set: GraphSet, checkpoint: Checkpoint, variant: str, image_size: int
) -> GraphSet:
    """Add the two graphs of a variant.

    Args:
        graph_set: the package's graphs.
        checkpoint: the checkpoint with the weights.
        variant: the variant that onnxruntime-genai is to run.
        image_size: side of the square input in pixels.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    precision = VARIANTS[variant].vision_precision
    vision = image_encoder(checkpoint, precision, image_size, is_flat=True)
    config, weights = checkpoint.config.decoder, Weights(checkpoint.tensors)
    (embeddings,) = (
        each
        for each in graph_set.embeddings
        if each.file_name == graph_set.variants[variant].embed_tokens
    )
    embedding = build_token_embeddings(
        embedding_rows(weights, config),
        config,
        embeddings.dtype,
        image_token_id=config.vocab_size,
    )
    files = genai_files(variant)
    projector_file = weights_file(PROJECTOR, precision)
    return replace(
        graph_set,
        graphs={
            **graph_set.graphs,
            files["vision"]: UnwrittenGraph(
                vision,
                weights_file(VISION_ENCODER, precision),
                other_files=dict.fromkeys(_names(vision, MODULE), projector_file),
            ),
            files["embedding"]: UnwrittenGraph(
                embedding,
                None,
                other_files={
                    f"{EMBED_TOKENS}.weight": embeddings.file_name,
                    f"{EMBED_TOKENS}.scales": scale_file(embeddings.file_name),
                },
            ),
        },
    )


def genai_files(variant: str) -> dict[str, str]:
    """Return the names of the two graph files."""
    return {graph: f"genai_{graph}.{variant}.onnx" for graph in ("vision", "embedding")}


def write_genai_configs(folder: Path, checkpoint: Checkpoint, variant: str, decoder: str) -> None:
    """Write the configurations of onnxruntime-genai and of its tokenizer.

    Args:
        folder: the package's folder.
        checkpoint: the checkpoint with the sizes.
        variant: the variant that onnxruntime-genai is to run.
        decoder: the variant's decoder file.
    """
    configs = {
        CONFIG_FILE: genai_config(checkpoint, genai_files(variant), decoder),
        # The tokenizer of onnxruntime-genai reads tokenizer.json, and the kind of it from here.
        "tokenizer_config.json": {"tokenizer_class": "Qwen2Tokenizer"},
    }
    for name, content in configs.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def genai_config(checkpoint: Checkpoint, files: Mapping[str, str], decoder: str) -> dict[str, Any]:
    sizes = checkpoint.config.decoder
    eos = list(sizes.eos_token_ids)
    return {
        "model": {
            "type": MODEL_TYPE,
            "bos_token_id": eos[0],
            "eos_token_id": eos,
            "pad_token_id": eos[0],
            "context_length": sizes.max_position_embeddings,
            "vocab_size": sizes.vocab_size,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": decoder,
                "head_size": sizes.head_dim,
                "hidden_size": sizes.hidden_size,
                "num_attention_heads": sizes.num_attention_heads,
                "num_key_value_heads": sizes.num_key_value_heads,
                "num_hidden_layers": sizes.num_hidden_layers,
                "inputs": {
                    INPUTS_EMBEDS: INPUTS_EMBEDS,
                    ATTENTION_MASK: ATTENTION_MASK,
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    LOGITS: LOGITS,
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
            "embedding": {
                "filename": files["embedding"],
                "inputs": {INPUT_IDS: INPUT_IDS, IMAGE_FEATURES: IMAGE_FEATURES},
                "outputs": {INPUTS_EMBEDS: INPUTS_EMBEDS},
            },
            "vision": {
                "filename": files["vision"],
                "inputs": {PIXEL_VALUES: PIXEL_VALUES},
                "outputs": {IMAGE_FEATURES: IMAGE_FEATURES},
            },
        },
        "search": {
            "do_sample": False,
            "top_k": 1,
            "num_beams": 1,
            "max_length": sizes.max_position_embeddings,
            "past_present_share_buffer": True,
        },
    }


def _names(model: ir.Model, module: str) -> list[str]:
    return [
        name for graph in model.graphs() for name in graph.initializers if name.startswith(module)
    ]
