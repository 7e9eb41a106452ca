"""Convert the two layouts of published FastVLM checkpoints to Apple's names and fields.

Apple's layout (`llava_qwen2`) is the canonical one. transformers' own layout (`fast_vlm`) has other
tensor names, a nested configuration, a padded vocabulary and an `<image>` token.

Source: transformers 5 (models/fast_vlm, convert_fastvlm_weights_to_hf.py), timm fastvit_mci3.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fastvlm_onnx.errors import CheckpointError, UnsupportedError
from fastvlm_onnx.export.architecture.config import VISION_PATCH_SIZE
from fastvlm_onnx.export.architecture.tensor_names import PROJECTOR_PREFIX, VISION_PREFIX
from fastvlm_onnx.export.checkpoint.chat_template import read_chat_template
from fastvlm_onnx.export.checkpoint.tokenizer_files import TokenizerFile
from fastvlm_onnx.export.disk.json_files import read_json
from fastvlm_onnx.names import IMAGE_TOKEN
from fastvlm_onnx.package import PromptFormat

APPLE: Final = "llava_qwen2"
NATIVE: Final = "fast_vlm"

# The qwen_2 conversation of predict.py, cut at the places of the image and of the prompt.
PROMPT: Final = PromptFormat(
    system="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
    user="<|im_start|>user\n",
    after_image="\n",
    end_of_turn="<|im_end|>\n",
    assistant="<|im_start|>assistant\n",
)

# Apple's index in `network` of a stage's blocks, downsample and position encoding, by timm's stage.
_BLOCKS = {"0": 0, "1": 2, "2": 4, "3": 7, "4": 10}
_DOWNSAMPLE = {"1": 1, "2": 3, "3": 5, "4": 8}
_POSITIONS = {"3": 6, "4": 9}
_NATIVE_VISION = "model.vision_tower.timm_model."
_NATIVE_PREFIXES = {
    "model.multi_modal_projector.linear_1.": f"{PROJECTOR_PREFIX}0.",
    "model.multi_modal_projector.linear_2.": f"{PROJECTOR_PREFIX}2.",
    "model.language_model.": "model.",
}
_NATIVE_PARTS = (
    (r"^stem\.", "patch_embed."),
    (r"^stages\.(\d)\.blocks\.", lambda m: f"network.{_BLOCKS[m[1]]}."),
    (
        r"^stages\.(\d)\.downsample\.proj\.0\.reparam_conv\.",
        lambda m: f"network.{_DOWNSAMPLE[m[1]]}.proj.0.lkb_reparam.",
    ),
    (r"^stages\.(\d)\.downsample\.", lambda m: f"network.{_DOWNSAMPLE[m[1]]}."),
    (r"^stages\.(\d)\.pos_emb\.", lambda m: f"network.{_POSITIONS[m[1]]}."),
    (r"^final_conv\.", "conv_exp."),
    (r"\.mlp\.", ".convffn."),
    (r"(\.layer_scale(_[12])?)\.gamma$", r"\1"),
    (r"\.se\.fc1\.", ".se.reduce."),
    (r"\.se\.fc2\.", ".se.expand."),
)
# Fields of transformers' layout that change the computation, with the values that are built.
_NATIVE_BUILT: Mapping[str, tuple[Any, ...]] = {
    "projector_hidden_act": ("gelu",),
    "multimodal_projector_bias": (True,),
    "vision_feature_layer": (-1,),
    "vision_feature_select_strategy": ("full",),
}


def canonical_name(name: str, model_type: str) -> str:
    """Return Apple's name of a tensor; a name that no FastVLM has is returned unchanged.

    Args:
        name: the name in the file, for example (as transformers 5.23 saves it)
            `model.vision_tower.timm_model.stem.0.reparam_conv.weight`.
        model_type: APPLE or NATIVE.
    """
    if model_type == APPLE:
        return name
    for prefix, apple_prefix in _NATIVE_PREFIXES.items():
        if name.startswith(prefix):
            return apple_prefix + name.removeprefix(prefix)
    if not name.startswith(_NATIVE_VISION):
        return name
    name = name.removeprefix(_NATIVE_VISION)
    for pattern, replacement in _NATIVE_PARTS:
        try:
            name = re.sub(pattern, replacement, name)
        except KeyError:  # FastViTHD has no such stage
            continue
    return VISION_PREFIX + name


def canonical_fields(folder: Path) -> dict[str, Any]:
    """Read the fields of config.json under Apple's names; `model_type` is that of the file.

    Raises:
        CheckpointError: config.json is missing or is not valid JSON.
        UnsupportedError: the model is no FastVLM, or its configuration is not built.
    """
    path = folder / "config.json"
    fields = read_json(path)
    model_type = fields.get("model_type")
    if model_type == APPLE:
        return fields
    if model_type != NATIVE:
        raise UnsupportedError(
            f"{path}: model_type is {model_type!r}, expected {APPLE!r} or {NATIVE!r}; "
            "only FastVLM checkpoints can be exported."
        )
    check_built(fields, _NATIVE_BUILT, path)
    text, vision = (_section(fields, name, path) for name in ("text_config", "vision_config"))
    check_built(vision, {"architecture": ("fastvit_mci3",)}, path)
    return {
        **text,
        "model_type": NATIVE,
        "eos_token_id": _native_eos(folder, fields, text),
        "mm_vision_tower": f"mobileclip_l_{_native_image_size(folder, fields, path)}",
    }


def check_built(
    fields: Mapping[str, Any], built_values: Mapping[str, tuple[Any, ...]], path: Path
) -> None:
    """Raise UnsupportedError if a field has a value that is not built; name field and value."""
    for name, built in built_values.items():
        if name in fields and fields[name] not in built:
            raise UnsupportedError(
                f"{path}: {name} is {fields[name]!r}, and only "
                f"{' or '.join(map(repr, built))} is built."
            )


def canonical_prompt(folder: Path, model_type: str) -> PromptFormat:
    """Return the conversation format around image and prompt.

    predict.py has its own format and ignores a template in the folder. For transformers' layout,
    the template in the folder is used.
    """
    template = None if model_type == APPLE else read_chat_template(folder)
    return template or PROMPT


def without_image_token(tokenizer: TokenizerFile) -> TokenizerFile:
    """Remove the `<image>` token that a conversion appended as the last token.

    The token marks the image in transformers' prompts. Here the image is no token, and the row of
    `<image>` in the embeddings was never trained, so the model must not be able to generate it.
    """
    content = json.loads(tokenizer.text)
    last = next((t for t in content["added_tokens"] if t["id"] == tokenizer.length - 1), None)
    if last is None or last["content"] != IMAGE_TOKEN:
        return tokenizer
    content["added_tokens"].remove(last)
    content["model"]["vocab"].pop(IMAGE_TOKEN, None)
    return TokenizerFile(json.dumps(content, ensure_ascii=False), tokenizer.length - 1)


def _section(fields: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    section = fields.get(name)
    if not isinstance(section, dict):
        raise CheckpointError(f"{path}: {name} is {section!r}, expected an object.")
    return section


def _native_eos(folder: Path, fields: Mapping[str, Any], text: Mapping[str, Any]) -> Any:
    """Return the first eos_token_id that is set; transformers prefers generation_config.json."""
    generation_file = folder / "generation_config.json"
    generation = read_json(generation_file) if generation_file.is_file() else {}
    candidates = (part.get("eos_token_id") for part in (generation, text, fields))
    return next((eos for eos in candidates if eos is not None), None)


def _native_image_size(folder: Path, fields: Mapping[str, Any], path: Path) -> int:
    """Return the side of the input in pixels, from the image processor or from the token count."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            processor = read_json(folder / name)
            if "image_processor" in processor:
                processor = _section(processor, "image_processor", folder / name)
            crop = processor.get("crop_size") or processor.get("size")
            if isinstance(crop, dict):
                crop = crop.get("height") or crop.get("shortest_edge")
            if isinstance(crop, int):
                return crop
    tokens = fields.get("image_seq_length")
    if not isinstance(tokens, int) or tokens < 1 or math.isqrt(tokens) ** 2 != tokens:
        raise CheckpointError(
            f"{path}: image_seq_length is {tokens!r}, expected a square number of image tokens."
        )
    return VISION_PATCH_SIZE * math.isqrt(tokens)
