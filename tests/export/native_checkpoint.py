"""A checkpoint in Apple's layout, rewritten as transformers saves a FastVLM of its own.

What `save_pretrained` of transformers 5.23 writes, for the model and for its processor: tensors
under `model.vision_tower.timm_model.`, `model.multi_modal_projector.` and `model.language_model.`,
and `lm_head.weight` unless it is tied; config.json, generation_config.json, processor_config.json
(and no preprocessor_config.json), chat_template.jinja, tokenizer.json, tokenizer_config.json. The
slow tests have transformers load such a folder and save it again, and compare.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import AddedToken, Tokenizer, processors

from fastvlm_onnx.export.checkpoint.tokenizer_files import read_tokenizer

APPLE_VISION = "model.vision_tower.vision_tower.model."
# timm's stage of Apple's index in `network`: of its blocks, downsample and position encoding.
BLOCKS = {0: 0, 2: 1, 4: 2, 7: 3, 10: 4}
DOWNSAMPLES = {1: 1, 3: 2, 5: 3, 8: 4}
POSITIONS = {6: 3, 9: 4}
PADDED_TO = 64
VERSION = "5.23.0"


def native_name(name: str) -> str | None:
    """Return transformers' name of one of Apple's tensors; None if its converter drops it."""
    if name.startswith(APPLE_VISION):
        vision = _timm_name(name.removeprefix(APPLE_VISION))
        return None if vision is None else f"model.vision_tower.timm_model.{vision}"
    for part, linear in (("0", "linear_1"), ("2", "linear_2")):
        prefix = f"model.mm_projector.{part}."
        if name.startswith(prefix):
            return f"model.multi_modal_projector.{linear}.{name.removeprefix(prefix)}"
    return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name


def _timm_name(name: str) -> str | None:
    if name == "head.proj":
        return None
    name = name.replace("patch_embed.", "stem.").replace("conv_exp.", "final_conv.")
    name = name.replace(".se.reduce.", ".se.fc1.").replace(".se.expand.", ".se.fc2.")
    name = name.replace(".convffn.", ".mlp.").replace(".lkb_reparam.", ".reparam_conv.")
    name = re.sub(r"(layer_scale(_[12])?)$", r"\1.gamma", name)
    match = re.fullmatch(r"network\.(\d+)\.(.*)", name)
    if match:
        index, rest = int(match[1]), match[2]
        if index in BLOCKS:
            name = f"stages.{BLOCKS[index]}.blocks.{rest}"
        elif index in DOWNSAMPLES:
            name = f"stages.{DOWNSAMPLES[index]}.downsample.{rest}"
        else:
            name = f"stages.{POSITIONS[index]}.pos_emb.{rest}"
    return name


def write_native_checkpoint(apple: Path, native: Path) -> None:
    """Write `native`, a folder that is made here."""
    native.mkdir()
    fields = json.loads((apple / "config.json").read_text())
    tokenizer = Tokenizer.from_str(read_tokenizer(apple).text)
    tokens = tokenizer.get_vocab_size()
    tokenizer.add_tokens([AddedToken("<image>", special=True, normalized=False)])
    # Both without effect, and both in what transformers saves.
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1")
    tokenizer.model.continuing_subword_prefix = tokenizer.model.end_of_word_suffix = ""
    tokenizer.save(str(native / "tokenizer.json"))
    # Room for two more tokens, then up to a multiple: 152,000 rows and 7B's 152,128.
    rows = -(-(fields["vocab_size"] + 2) // PADDED_TO) * PADDED_TO
    tensors = {}
    for name, tensor in load_file(apple / "model.safetensors").items():
        renamed = native_name(name)
        if renamed is not None:
            tensors[renamed] = _padded(tensor, tokens, rows) if _has_vocab(name) else tensor
    save_file(tensors, native / "model.safetensors", metadata={"format": "pt"})
    size = int(fields["mm_vision_tower"].split("_")[-1])
    contents = {
        "config.json": _config(fields, rows, tokens, (size // 64) ** 2),
        "generation_config.json": {
            "bos_token_id": fields["bos_token_id"],
            "eos_token_id": fields["eos_token_id"],
            "transformers_version": VERSION,
        },
        "processor_config.json": _processor_config(size),
        "tokenizer_config.json": TOKENIZER_CONFIG,
    }
    for name, content in contents.items():
        (native / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    (native / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def _has_vocab(name: str) -> bool:
    return name in ("model.embed_tokens.weight", "lm_head.weight")


def _padded(matrix: np.ndarray, tokens: int, rows: int) -> np.ndarray:
    """Append rows that were never trained, such as that of `<image>`, to the rows of the tokens."""
    junk = np.random.default_rng(1).standard_normal((rows - tokens, matrix.shape[1]))
    return np.concatenate([matrix[:tokens], (junk * 30).astype(matrix.dtype)])


def _config(fields: dict[str, Any], rows: int, image_token: int, length: int) -> dict[str, Any]:
    text = {
        name: fields[name]
        for name in (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "max_position_embeddings",
            "rms_norm_eps",
            "hidden_act",
            "use_sliding_window",
            "tie_word_embeddings",
        )
    }
    text |= {
        "model_type": "qwen2",
        "vocab_size": rows,
        "rope_parameters": {"rope_theta": fields["rope_theta"], "rope_type": "default"},
        "layer_types": ["full_attention"] * fields["num_hidden_layers"],
        "max_window_layers": 28,
        "sliding_window": None,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "dtype": "bfloat16",
        # The model's own are in generation_config.json.
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    return {
        "architectures": ["FastVlmForConditionalGeneration"],
        "model_type": "fast_vlm",
        "dtype": "bfloat16",
        "image_token_index": image_token,
        "image_seq_length": length,
        "multimodal_projector_bias": True,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "tie_word_embeddings": fields["tie_word_embeddings"],
        "transformers_version": VERSION,
        "text_config": text,
        "vision_config": {
            "model_type": "timm_wrapper",
            "architecture": "fastvit_mci3",
            "do_pooling": True,
            "global_pool": "avg",
            "hidden_size": fields["mm_hidden_size"],
            "initializer_range": 0.02,
            "label_names": ["LABEL_0", "LABEL_1"],
            "num_classes": 2,
            "model_args": {"inference_mode": True},
            "dtype": "bfloat16",
        },
    }


def _processor_config(size: int) -> dict[str, Any]:
    return {
        "image_processor": {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": size},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": {"height": size, "width": size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.0, 0.0, 0.0],
            "image_std": [1.0, 1.0, 1.0],
        },
        "image_token": "<image>",
        "num_additional_image_tokens": 0,
        "patch_size": 64,
        "processor_class": "LlavaProcessor",
        "vision_feature_select_strategy": None,
    }


TOKENIZER_CONFIG = {
    "add_prefix_space": False,
    "backend": "tokenizers",
    "bos_token": None,
    "eos_token": "<|im_end|>",
    "errors": "replace",
    "extra_special_tokens": ["<|im_start|>", "<|im_end|>"],
    "model_max_length": 8192,
    "pad_token": "<|endoftext|>",
    "processor_class": "LlavaProcessor",
    "tokenizer_class": "Qwen2Tokenizer",
    "unk_token": None,
}

# The conversation that the published conversions render, written anew.
CHAT_TEMPLATE = """\
{%- if messages[0]['role'] != 'system' -%}
<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif -%}
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% for part in message['content'] if part['type'] == 'image' -%}
<image>
{% endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}
{{ part['text'] }}
{%- endfor -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""
