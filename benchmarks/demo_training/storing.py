"""Store the trained weights exactly as Apple stores a FastVLM checkpoint."""

import json
from pathlib import Path

from safetensors.torch import save_file

from demo_training.model import folded_tensors
from demo_training.sizes import LANGUAGE, VISION, VOCAB_ROWS
from fastvlm_onnx.export.verification.reference_model import ReferenceFastVLM


def save_checkpoint(model: ReferenceFastVLM, tokenizer: Path, tokens: int, out: Path) -> None:
    """Write config.json, model.safetensors and the tokenizer's files as Apple's folder has them."""
    out.mkdir(parents=True, exist_ok=True)
    save_file(folded_tensors(model), out / "model.safetensors", metadata={"format": "pt"})
    for name in ("vocab.json", "merges.txt", "added_tokens.json"):
        (out / name).write_bytes((tokenizer / name).read_bytes())
    special = json.loads((out / "added_tokens.json").read_text())
    config = {
        "architectures": ["LlavaQwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": special["<|endoftext|>"],
        "eos_token_id": special["<|im_end|>"],
        "freeze_mm_mlp_adapter": False,
        "hidden_act": "silu",
        "hidden_size": LANGUAGE.hidden_size,
        "image_aspect_ratio": "pad",
        "image_grid_pinpoints": None,
        "initializer_range": 0.02,
        "intermediate_size": LANGUAGE.intermediate_size,
        "max_position_embeddings": LANGUAGE.max_position_embeddings,
        "max_window_layers": LANGUAGE.num_hidden_layers,
        "mm_hidden_size": VISION.hidden_size,
        "mm_patch_merge_type": "flat",
        "mm_projector_lr": None,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": f"mobileclip_l_{VISION.image_size}",
        "model_type": "llava_qwen2",
        "num_attention_heads": LANGUAGE.num_attention_heads,
        "num_hidden_layers": LANGUAGE.num_hidden_layers,
        "num_key_value_heads": LANGUAGE.num_key_value_heads,
        "rms_norm_eps": LANGUAGE.rms_norm_eps,
        "rope_theta": LANGUAGE.rope_theta,
        "sliding_window": LANGUAGE.max_position_embeddings,
        "tie_word_embeddings": False,
        "tokenizer_model_max_length": LANGUAGE.max_position_embeddings,
        "tokenizer_padding_side": "right",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.39.3",
        "tune_mm_mlp_adapter": False,
        "unfreeze_mm_vision_tower": True,
        "use_cache": True,
        "use_mm_proj": True,
        "use_sliding_window": False,
        "vocab_size": VOCAB_ROWS,
    }
    assert tokens <= VOCAB_ROWS
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (out / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "transformers_version": "4.39.3"}, indent=2) + "\n"
    )
    tokenizer_config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(i): {"content": token, "special": True} for token, i in special.items()
        },
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": LANGUAGE.max_position_embeddings,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")
    (out / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, indent=2) + "\n"
    )
