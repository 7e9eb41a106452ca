"""Read a checkpoint's folder: its configuration, and its tensors under Apple's names.

Every accepted layout gives the same Checkpoint. A tensor's values are read when they are used, not
before. This file knows folders only; where a folder comes from is known to sources/.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fastvlm_onnx.errors import FastVLMError
from fastvlm_onnx.export.architecture.config import FastVLMConfig
from fastvlm_onnx.export.architecture.tensor_names import LM_HEAD
from fastvlm_onnx.export.checkpoint.config_reader import is_tied, read_config
from fastvlm_onnx.export.checkpoint.layouts import (
    canonical_fields,
    canonical_name,
    canonical_prompt,
    without_image_token,
)
from fastvlm_onnx.export.checkpoint.lora import merge_adapter
from fastvlm_onnx.export.checkpoint.tokenizer_files import read_tokenizer
from fastvlm_onnx.export.checkpoint.weight_files import open_weights
from fastvlm_onnx.export.tensors.lazy_array import LazyArray, check_finite
from fastvlm_onnx.package import PromptFormat

CONFIG_FILE = "config.json"
LICENSE_FILES = ("LICENSE_MODEL", "LICENSE")


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint.

    Attributes:
        name: the checkpoint's name in a manifest.
        model_type: `model_type` of config.json: "llava_qwen2" in Apple's layout, "fast_vlm" in
            transformers' own.
        config: sizes, read from config.json and from the shapes of the tensors.
        tensors: every tensor under Apple's name. `lm_head.weight` is there only if it differs from
            the embedding matrix.
        tokenizer: the text of a tokenizer.json.
        prompt: the conversation format that the model was trained on.
        license: the text of the licence file in the folder, or None without such a file.
        keep: an object that must live as long as tensors are read, such as a temporary folder.
    """

    name: str
    model_type: str
    config: FastVLMConfig
    tensors: Mapping[str, LazyArray]
    tokenizer: str
    prompt: PromptFormat
    license: str | None
    keep: object = field(default=None, repr=False)


def read_checkpoint(
    folder: Path,
    *,
    name: str | None = None,
    adapter: Path | None = None,
    base_name: str | None = None,
    allow_nonfinite: bool = False,
    keep: object = None,
) -> Checkpoint:
    """Read a folder in Apple's or in transformers' own layout.

    Args:
        folder: a whole model.
        name: the checkpoint's name in a manifest; the folder's name when None.
        adapter: the folder of a LoRA adapter to merge into the model.
        base_name: the model's name in errors about the adapter; the folder's path when None.
        allow_nonfinite: accept NaN and infinity. Otherwise a tensor that holds them raises
            CheckpointError when it is read.
        keep: stored in the Checkpoint, which keeps it alive.

    Raises:
        CheckpointError: a file is missing or damaged, or the folder holds another kind of model.
        UnsupportedError: the configuration is not built; the message names field and value.
    """
    fields = canonical_fields(folder)
    tensors = _open_tensors(folder, fields["model_type"], adapter, base_name or str(folder))
    if not allow_nonfinite:
        tensors = {name: check_finite(name, tensor) for name, tensor in tensors.items()}
    tokenizer = without_image_token(read_tokenizer(folder))
    config = read_config(
        fields, tensors, tokenizer.length, folder / CONFIG_FILE, is_tied=is_tied(tensors)
    )
    if config.decoder.is_tied:
        tensors.pop(LM_HEAD, None)
    return Checkpoint(
        name=name or folder.name,
        model_type=fields["model_type"],
        config=config,
        tensors=tensors,
        tokenizer=tokenizer.text,
        prompt=canonical_prompt(folder, fields["model_type"]),
        license=_read_license(folder),
        keep=keep,
    )


def check_whole(folder: Path) -> None:
    """Raise unless a folder holds a checkpoint with all of its files, each of them complete.

    Reads config.json, the tokenizer's files, the index of shards and the headers of weight files,
    which state how long each file is. The values of tensors are not read.

    Raises:
        CheckpointError: a file is missing or damaged, or the folder holds another kind of model.
        UnsupportedError: the configuration is not built.
    """
    fields = canonical_fields(folder)
    tensors = _open_tensors(folder, fields["model_type"])
    tokenizer = without_image_token(read_tokenizer(folder))
    # Whether lm_head is tied can be told from values alone, and no check depends on it.
    read_config(fields, tensors, tokenizer.length, folder / CONFIG_FILE, is_tied=False)
    canonical_prompt(folder, fields["model_type"])


def is_whole_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a checkpoint that `check_whole` accepts."""
    if not folder.is_dir():
        return False
    try:
        check_whole(folder)
    except FastVLMError:
        return False
    return True


def _open_tensors(
    folder: Path, model_type: str, adapter: Path | None = None, base_name: str = ""
) -> dict[str, LazyArray]:
    stored = open_weights(folder)
    if adapter:
        stored = merge_adapter(adapter, stored, base_name)
    return {canonical_name(name, model_type): tensor for name, tensor in stored.items()}


def _read_license(folder: Path) -> str | None:
    files = (folder / name for name in LICENSE_FILES)
    return next((file.read_text("utf-8", "replace") for file in files if file.is_file()), None)
