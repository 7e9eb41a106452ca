"""Merge a LoRA adapter into a base checkpoint, tensor by tensor when tensors are read.

The files are those of peft (adapter_config.json, adapter_model.safetensors or .bin) and of LLaVA's
trainer (non_lora_trainables.bin, whose projector and vision weights replace those of the base).

Source: peft's LoRA layers (merge: weight + scaling * B @ A) and llava/model/builder.py.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fastvlm_onnx.errors import CheckpointError, UnsupportedError
from fastvlm_onnx.export.checkpoint.weight_files import open_weight_file
from fastvlm_onnx.export.disk.json_files import read_json
from fastvlm_onnx.export.tensors.lazy_array import FloatArray, LazyArray

ADAPTER_CONFIG: Final = "adapter_config.json"
_ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_TRAINABLES = "non_lora_trainables.bin"
_BUILT: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "fan_in_fan_out": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
}


def is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file()


def base_of(folder: Path) -> str:
    """Return the path or id of the base that adapter_config.json names, for error messages."""
    return str(read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path") or "not named")


def merge_adapter(
    folder: Path, base: Mapping[str, LazyArray], base_name: str
) -> dict[str, LazyArray]:
    """Add an adapter's products to the tensors of its base.

    Args:
        folder: the adapter.
        base: the base's tensors under the names in its files, which the adapter's names refer to.
        base_name: the base's name in error messages.

    Returns:
        The merged tensors under the names of the base; a product is computed when it is read.

    Raises:
        CheckpointError: the adapter is damaged, or was trained on another base.
        UnsupportedError: this kind of adapter is not built.
    """
    config_file = folder / ADAPTER_CONFIG
    config = read_json(config_file)
    for name, built in _BUILT.items():
        if name in config and config[name] not in built:
            raise UnsupportedError(
                f"{config_file}: {name} is {config[name]!r}, and only "
                f"{' or '.join(map(repr, built))} is built; merge it with peft and export that."
            )
    merged = dict(base)
    adapter_file = _adapter_file(folder)
    pairs, whole = _sort_tensors(dict(open_weight_file(adapter_file)), adapter_file)
    if (folder / _TRAINABLES).is_file():
        whole |= {
            _base_name(name): tensor for name, tensor in open_weight_file(folder / _TRAINABLES)
        }
    for name, tensor in whole.items():
        _check_shape(name, tensor.shape, base, base_name, folder)
        merged[name] = tensor
    for name, (a, b) in pairs.items():
        scaling = _scaling(config, name, a.shape[0], config_file)
        shape = (a.shape[1], b.shape[0]) if _is_embedding(name) else (b.shape[0], a.shape[1])
        _check_shape(name, shape, base, base_name, folder)
        merged[name] = _merged(merged[name], a, b, scaling, _is_embedding(name))
    return merged


def _adapter_file(folder: Path) -> Path:
    for name in _ADAPTER_FILES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder}: found no {' or '.join(_ADAPTER_FILES)}; copy it again.")


def _sort_tensors(
    tensors: Mapping[str, LazyArray], path: Path
) -> tuple[dict[str, tuple[LazyArray, LazyArray]], dict[str, LazyArray]]:
    """Return pairs (A, B) by the weight that they change, and tensors that replace a weight."""
    halves: dict[str, dict[str, LazyArray]] = {}
    whole: dict[str, LazyArray] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(.*)\.lora_(?:embedding_)?([AB])(?:\.default)?(?:\.weight)?", name)
        if match:
            halves.setdefault(f"{_base_name(match[1])}.weight", {})[match[2]] = tensor
        elif ".lora_" in name:
            raise UnsupportedError(
                f"{path}: holds {name}, and only pairs lora_A, lora_B are built; "
                "merge it with peft and export that."
            )
        else:
            whole[_base_name(name)] = tensor
    for name, pair in halves.items():
        if pair.keys() != {"A", "B"} or any(len(half.shape) != 2 for half in pair.values()):
            raise CheckpointError(
                f"{path}: found {' and '.join(f'lora_{key}' for key in pair)} for {name}, "
                "expected a matrix lora_A and a matrix lora_B; copy the adapter again."
            )
        if pair["A"].shape[0] != pair["B"].shape[1]:
            raise CheckpointError(
                f"{path}: lora_A of {name} has rank {pair['A'].shape[0]} and lora_B rank "
                f"{pair['B'].shape[1]}; copy the adapter again."
            )
    return {name: (pair["A"], pair["B"]) for name, pair in halves.items()}, whole


def _base_name(name: str) -> str:
    """Remove peft's wrapper from a name: `base_model.model.model.x` -> `model.x`."""
    name = name.removeprefix("base_model.model.").removeprefix("base_model.")
    return re.sub(r"\.(modules_to_save(\.default)?|base_layer)(?=\.)", "", name)


def _is_embedding(name: str) -> bool:
    return name.endswith("embed_tokens.weight")


def _scaling(config: Mapping[str, Any], name: str, rank: int, path: Path) -> float:
    """Return lora_alpha / r, or lora_alpha / sqrt(r) for rank-stabilised LoRA."""
    module = name.removesuffix(".weight")
    alpha = _by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha"))
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise CheckpointError(f"{path}: lora_alpha is {alpha!r}, expected a number.")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _check_shape(
    name: str, shape: tuple[int, ...], base: Mapping[str, LazyArray], base_name: str, folder: Path
) -> None:
    if name not in base:
        raise CheckpointError(
            f"{folder}: changes {name}, which {base_name} does not have; "
            "give the base that the adapter was trained on."
        )
    if base[name].shape != shape:
        raise CheckpointError(
            f"{folder}: its {name} is {list(shape)}, and that of {base_name} "
            f"{list(base[name].shape)}; give the base that the adapter was trained on."
        )


def _merged(
    weight: LazyArray, a: LazyArray, b: LazyArray, scaling: float, is_embedding: bool
) -> LazyArray:
    def add(rows: FloatArray, which: slice) -> FloatArray:
        # peft stores the factors of an embedding transposed: A is [r, rows], B is [width, r].
        left, right = (a.read().T, b.read().T) if is_embedding else (b.read(), a.read())
        merged: FloatArray = rows + scaling * (left[which] @ right)
        return merged

    return weight.each_row(add)
