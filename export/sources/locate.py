"""Locate a checkpoint's folder: a path, a zip, a Hugging Face id, a size, or the built-in one."""

import shutil
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fastvlm_onnx.errors import CheckpointError
from fastvlm_onnx.export.sources.apple_zoo import SIZES, find_or_download_checkpoint
from fastvlm_onnx.export.sources.archive import unpack_checkpoint
from fastvlm_onnx.hub_snapshot import download_snapshot, is_hub_id
from fastvlm_onnx.progress import Progress, no_progress
from fastvlm_onnx.samples import DEMO_CHECKPOINT

DEMO: Final = "demo"
# PyTorch's weights are left out at first: many repositories hold the same weights as safetensors.
_HUB_FILES = ["*.json", "*.txt", "*.jinja", "*.safetensors", "LICENSE*"]
_HUB_PICKLED = "pytorch_model*.bin"


@dataclass(frozen=True)
class LocatedCheckpoint:
    """A folder on this disk that should hold a checkpoint.

    Attributes:
        folder: the absolute path.
        name: the checkpoint's name in a manifest.
        keep: owns a temporary folder, which is removed with the last reference to `keep`; None for
            any other folder.
    """

    folder: Path
    name: str
    keep: object = None


def locate(source: str | Path, progress: Progress = no_progress) -> LocatedCheckpoint:
    """Locate the folder that `source` means; unpack a zip, download an id or a size.

    Args:
        source: as in `open_checkpoint`.
        progress: called while a checkpoint is downloaded or unpacked.

    Raises:
        CheckpointError: the source does not exist, or it cannot be unpacked or downloaded.
        PackageError: the disk has no room for the download or for the unpacked files.
    """
    text, path = str(source), Path(source)
    if text == DEMO:
        return LocatedCheckpoint(DEMO_CHECKPOINT, DEMO)
    if path.is_dir():
        return LocatedCheckpoint(path.resolve(), path.resolve().name)
    if path.is_file():
        return _unpack(path, progress)
    if text.lower() in SIZES:
        folder = find_or_download_checkpoint(text.lower(), progress)
        return LocatedCheckpoint(folder, folder.name)
    if isinstance(source, str) and is_hub_id(source):
        return LocatedCheckpoint(_download(source), source.partition("@")[0])
    raise CheckpointError(
        f"{source}: no such folder or zip; expected a FastVLM checkpoint, a Hugging Face id such "
        f"as apple/FastVLM-0.5B, {', '.join(SIZES)}, or `{DEMO}`."
    )


class _TemporaryFolder:
    """A folder that is removed with the last reference to this object."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="fastvlm-onnx-")).resolve()
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def _unpack(path: Path, progress: Progress) -> LocatedCheckpoint:
    temporary = _TemporaryFolder()
    folder = temporary.path / path.stem
    unpack_checkpoint(path, folder, progress)
    return LocatedCheckpoint(folder, path.stem, temporary)


def _download(hub_id: str) -> Path:
    """Download a checkpoint; PyTorch's weights only if the repository has no others."""
    folder = download_snapshot(hub_id, _HUB_FILES, CheckpointError)
    if any(folder.glob("*.safetensors")):
        return folder
    return download_snapshot(hub_id, [*_HUB_FILES, _HUB_PICKLED], CheckpointError)
