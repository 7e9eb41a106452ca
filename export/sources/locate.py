"""Where a checkpoint comes from: a folder, a zip, a Hugging Face id, a size, the built-in one."""

import shutil
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fastvlm_onnx.errors import CheckpointError
from fastvlm_onnx.export.sources.archive import unpack_checkpoint
from fastvlm_onnx.hub_snapshot import download_snapshot, is_hub_id
from fastvlm_onnx.progress import Progress, no_progress

DEMO: Final = "demo"
DEMO_CHECKPOINT: Final = "demo/checkpoint"
SIZES: Final = ("0.5b", "1.5b", "7b")
# Everything of a repository but PyTorch's weights, which are a second copy where both are there.
_HUB_FILES = ["*.json", "*.txt", "*.jinja", "*.safetensors", "LICENSE*"]
_HUB_PICKLED = "pytorch_model*.bin"


@dataclass(frozen=True)
class Source:
    """A checkpoint's folder, and what to call it.

    Attributes:
        keep: holds a temporary folder that vanishes with the last reference to it.
    """

    folder: Path
    name: str
    keep: object = None


def locate(source: str | Path, progress: Progress = no_progress) -> Source:
    """The folder that `source` means; a zip is unpacked, an id or a size downloaded.

    Raises:
        CheckpointError: nothing is there, or it cannot be unpacked or downloaded.
        PackageError: no room to unpack or download it.
    """
    text, path = str(source), Path(source)
    if text == DEMO:
        import fastvlm_onnx

        return Source(Path(fastvlm_onnx.__file__).parent / DEMO_CHECKPOINT, DEMO)
    if path.is_dir():
        return Source(path.resolve(), path.resolve().name)
    if path.is_file():
        return _unpack(path, progress)
    if text.lower() in SIZES:
        from fastvlm_onnx.export.sources.apple_zoo import downloaded_checkpoint

        folder = downloaded_checkpoint(text.lower(), progress)
        return Source(folder, folder.name)
    if isinstance(source, str) and is_hub_id(source):
        return Source(_download(source), source.partition("@")[0])
    raise CheckpointError(
        f"{source}: no such folder or zip; expected a FastVLM checkpoint, a Hugging Face id such "
        f"as apple/FastVLM-0.5B, {', '.join(SIZES)}, or `{DEMO}`."
    )


class _TemporaryFolder:
    """A folder that is removed with the last reference to this."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="fastvlm-onnx-")).resolve()
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def _unpack(path: Path, progress: Progress) -> Source:
    temporary = _TemporaryFolder()
    folder = temporary.path / path.stem
    unpack_checkpoint(path, folder, progress)
    return Source(folder, path.stem, temporary)


def _download(hub_id: str) -> Path:
    """Download a checkpoint; PyTorch's weights only where the repository has no others."""
    folder = download_snapshot(hub_id, _HUB_FILES, CheckpointError)
    if any(folder.glob("*.safetensors")):
        return folder
    return download_snapshot(hub_id, [*_HUB_FILES, _HUB_PICKLED], CheckpointError)
