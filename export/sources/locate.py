"""Where a checkpoint comes from: a folder, a zip, a Hugging Face id, a size, the built-in one."""

import re
import shutil
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fastvlm_onnx.errors import CheckpointError
from fastvlm_onnx.export.sources.archive import unpack_checkpoint
from fastvlm_onnx.progress import Progress, no_progress

DEMO: Final = "demo"
DEMO_CHECKPOINT: Final = "demo/checkpoint"
SIZES: Final = ("0.5b", "1.5b", "7b")
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*(@[\w./-]+)?")
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
    # A path that was mistyped is not looked for in the world.
    if isinstance(source, str) and _HUB_ID.fullmatch(source) and not path.parent.is_dir():
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
    """A snapshot in Hugging Face's own cache, which also serves it without a network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository, _, revision = hub_id.partition("@")
    try:
        files = list(_HUB_FILES)
        folder = Path(
            snapshot_download(repository, revision=revision or None, allow_patterns=files)
        )
        if not any(folder.glob("*.safetensors")):
            files.append(_HUB_PICKLED)
            folder = Path(
                snapshot_download(repository, revision=revision or None, allow_patterns=files)
            )
        return folder
    except GatedRepoError:
        reason = "its owner grants access by request; ask for it there and run `hf auth login`"
    except RevisionNotFoundError:
        reason = f"it has no revision {revision!r}; give one it has"
    except RepositoryNotFoundError:
        reason = "no such repository, or a private one; check the id, or run `hf auth login`"
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        reason = (
            "it is not in the cache and the hub cannot be reached; connect, unset HF_HUB_OFFLINE, "
            "or give a folder"
        )
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "no")
        reason = f"the hub answered with status {status}; try again later"
    except OSError as error:
        reason = f"{error}"
    raise CheckpointError(f"{hub_id}: cannot be downloaded from Hugging Face: {reason}.")
