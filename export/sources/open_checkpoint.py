"""Open a checkpoint from any source: locate its folder, then read the folder."""

from pathlib import Path

from fastvlm_onnx.errors import CheckpointError
from fastvlm_onnx.export.checkpoint.lora import ADAPTER_CONFIG, base_of, is_adapter
from fastvlm_onnx.export.checkpoint.reader import Checkpoint, read_checkpoint
from fastvlm_onnx.export.checkpoint.weight_files import holds_weights
from fastvlm_onnx.export.sources.locate import locate
from fastvlm_onnx.progress import Progress, no_progress


def open_checkpoint(
    source: str | Path,
    *,
    base: str | Path | None = None,
    allow_nonfinite: bool = False,
    progress: Progress = no_progress,
) -> Checkpoint:
    """Open a checkpoint.

    Args:
        source: a folder in Apple's or in transformers' own layout; a zip of such a folder; a LoRA
            adapter over `base`; a Hugging Face id; `0.5b`, `1.5b` or `7b` for Apple's checkpoints;
            `demo` for the built-in one.
        base: the model that an adapter was trained on, in any of the forms of `source`.
        allow_nonfinite: accept NaN and infinity. Otherwise a tensor that holds them raises
            CheckpointError when it is read.
        progress: called while a checkpoint is downloaded or unpacked.

    Raises:
        CheckpointError: the source does not exist, a file or shard is missing or damaged, or the
            files hold another kind of model.
        UnsupportedError: the configuration is not built; the message names field and value.
        PackageError: the disk has no room for the download or for the unpacked files.
    """
    located = locate(source, progress)
    is_lora = is_adapter(located.folder) and not holds_weights(located.folder)
    if is_lora and base is None:
        raise CheckpointError(
            f"{source}: found a LoRA adapter, which is no whole model; give the model that it was "
            f"trained on ({base_of(located.folder)}) with --base."
        )
    if base is None:
        return read_checkpoint(
            located.folder, name=located.name, allow_nonfinite=allow_nonfinite, keep=located.keep
        )
    if not is_lora:
        raise CheckpointError(
            f"{source}: found no {ADAPTER_CONFIG}, expected a LoRA adapter because a base is "
            "given; leave the base out to export a whole model."
        )
    located_base = locate(base, progress)
    return read_checkpoint(
        located_base.folder,
        name=located.name,
        adapter=located.folder,
        base_name=str(base),
        allow_nonfinite=allow_nonfinite,
        keep=(located.keep, located_base.keep),
    )
