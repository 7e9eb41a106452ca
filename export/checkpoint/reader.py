"""Open a checkpoint of any layout: its configuration, and its tensors by Apple's names.

Whatever was opened, what comes out is the same; no tensor is read before it is used.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fastvlm_onnx.errors import CheckpointError
from fastvlm_onnx.export.architecture.config import FastVLMConfig
from fastvlm_onnx.export.checkpoint.config_reader import LM_HEAD, read_config
from fastvlm_onnx.export.checkpoint.layouts import (
    canonical_fields,
    canonical_name,
    canonical_prompt,
    without_image_token,
)
from fastvlm_onnx.export.checkpoint.lora import ADAPTER_CONFIG, base_of, is_adapter, merge_adapter
from fastvlm_onnx.export.checkpoint.tokenizer_files import read_tokenizer
from fastvlm_onnx.export.checkpoint.weight_files import holds_weights, open_weights
from fastvlm_onnx.export.sources.locate import locate
from fastvlm_onnx.export.tensors.lazy_array import LazyArray, check_finite
from fastvlm_onnx.package import PromptFormat
from fastvlm_onnx.progress import Progress, no_progress

LICENSE_FILES = ("LICENSE_MODEL", "LICENSE")


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint.

    Attributes:
        name: what to call it in a manifest.
        model_type: `model_type` of config.json.
        config: sizes, read off config.json and the tensors' shapes.
        tensors: every tensor under Apple's names; `lm_head.weight` only where it is a matrix of
            its own.
        tokenizer: the text of a tokenizer.json.
        prompt: the conversation that the model was trained on.
        license: the text of the licence file that lies beside the weights, if one does.
        keep: holds what must live as long as the tensors are read.
    """

    name: str
    model_type: str
    config: FastVLMConfig
    tensors: Mapping[str, LazyArray]
    tokenizer: str
    prompt: PromptFormat
    license: str | None
    keep: object = field(default=None, repr=False)


def open_checkpoint(
    source: str | Path,
    *,
    base: str | Path | None = None,
    allow_nonfinite: bool = False,
    progress: Progress = no_progress,
) -> Checkpoint:
    """Open a checkpoint.

    Args:
        source: a folder in Apple's or in transformers' own layout, or a zip of one; a LoRA adapter
            over `base`; a Hugging Face id; `0.5b`, `1.5b` or `7b` for Apple's; `demo` for the
            built-in one.
        base: what an adapter was trained on, in any of the forms of `source`.
        allow_nonfinite: let NaN and infinity pass instead of refusing the tensor when it is read.
        progress: told of what is downloaded or unpacked.

    Raises:
        CheckpointError: nothing there, a file or shard missing or damaged, not a FastVLM.
        UnsupportedError: a configuration that is not built; the field and its value are named.
        PackageError: no room for what is downloaded or unpacked.
    """
    opened = locate(source, progress)
    folder, keep, name = opened.folder, opened.keep, opened.name
    adapter = folder if is_adapter(folder) and not holds_weights(folder) else None
    if adapter and base is None:
        raise CheckpointError(
            f"{source}: a LoRA adapter and no whole model; give what it was trained on "
            f"({base_of(adapter)}) with --base."
        )
    if base is not None:
        if not adapter:
            raise CheckpointError(
                f"{source}: found no {ADAPTER_CONFIG}, expected a LoRA adapter because a base is "
                "given; leave the base out to export a whole model."
            )
        under = locate(base, progress)
        folder, keep = under.folder, (opened.keep, under.keep)
    fields = canonical_fields(folder)
    model_type = fields["model_type"]
    stored = open_weights(folder)
    if adapter:
        stored = merge_adapter(adapter, stored, str(base))
    tensors = {canonical_name(name, model_type): tensor for name, tensor in stored.items()}
    if not allow_nonfinite:
        tensors = {name: check_finite(name, tensor) for name, tensor in tensors.items()}
    tokenizer = without_image_token(read_tokenizer(folder))
    config = read_config(fields, tensors, tokenizer.length, folder / "config.json")
    if config.decoder.is_tied:
        tensors.pop(LM_HEAD, None)
    return Checkpoint(
        name=name,
        model_type=model_type,
        config=config,
        tensors=tensors,
        tokenizer=tokenizer.text,
        prompt=canonical_prompt(folder, model_type),
        license=_read_license(folder),
        keep=keep,
    )


def _read_license(folder: Path) -> str | None:
    files = (folder / name for name in LICENSE_FILES)
    return next((file.read_text("utf-8", "replace") for file in files if file.is_file()), None)
