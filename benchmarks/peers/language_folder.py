"""A checkpoint's language model in transformers' layout, which the other runtimes convert."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from fastvlm_onnx.export.architecture.tensor_names import (
    LM_HEAD,
    PROJECTOR_PREFIX,
    VISION_PREFIX,
)
from fastvlm_onnx.export.sources.open_checkpoint import open_checkpoint

EMBEDDINGS = ("model.embed_tokens.weight", LM_HEAD)


def write_language_folder(source: Path, folder: Path) -> None:
    """Write config.json, model.safetensors and tokenizer files.

    The matrices of the vocabulary end at the tokenizer's length, as in an exported package. Weights
    are stored in bf16, as in the checkpoint.
    """
    checkpoint = open_checkpoint(source)
    size = checkpoint.config.decoder
    tensors = {}
    for name, tensor in checkpoint.tensors.items():
        if not name.startswith((VISION_PREFIX, PROJECTOR_PREFIX)):
            cut = tensor.first_rows(size.vocab_size) if name in EMBEDDINGS else tensor
            tensors[name] = np.ascontiguousarray(cut.read().astype(ml_dtypes.bfloat16))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    eos = list(size.eos_token_ids)
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "hidden_size": size.hidden_size,
        "intermediate_size": size.intermediate_size,
        "num_hidden_layers": size.num_hidden_layers,
        "num_attention_heads": size.num_attention_heads,
        "num_key_value_heads": size.num_key_value_heads,
        "vocab_size": size.vocab_size,
        "max_position_embeddings": size.max_position_embeddings,
        "rope_theta": size.rope_theta,
        "rms_norm_eps": size.rms_norm_eps,
        "tie_word_embeddings": size.is_tied,
        "use_sliding_window": False,
        "bos_token_id": eos[0],
        "eos_token_id": eos[0],
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}) + "\n")
    (folder / "tokenizer.json").write_text(checkpoint.tokenizer, encoding="utf-8")
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer) + "\n")
