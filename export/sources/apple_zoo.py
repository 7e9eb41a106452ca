"""Apple's own checkpoints: six archives, each downloaded, checked and unpacked as a whole."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from fastvlm_onnx.errors import CheckpointError, InputError, PackageError
from fastvlm_onnx.export.checkpoint.reader import check_whole, is_whole_checkpoint
from fastvlm_onnx.export.disk.atomic_folder import unfinished_folder
from fastvlm_onnx.export.disk.disk_space import check_disk_space
from fastvlm_onnx.export.sources.archive import unpack_checkpoint
from fastvlm_onnx.progress import Progress, no_progress
from fastvlm_onnx.user_data import user_folder

APPLE_BASE_URL: Final = "https://ml-site.cdn-apple.com/datasets/fastvlm"
SIZES: Final = ("0.5b", "1.5b", "7b")
STAGES: Final = (2, 3)
PAUSES_SECONDS: Final = (1, 2, 4, 8)


def checkpoint_name(size: str, stage: int) -> str:
    """Return Apple's name of a checkpoint, such as `llava-fastvithd_0.5b_stage3`.

    Raises:
        InputError: the size or the stage is not one of Apple's.
    """
    if size.lower() not in SIZES:
        raise InputError(f"size is {size!r}; expected one of {', '.join(SIZES)}.")
    if stage not in STAGES:
        raise InputError(f"stage is {stage}; expected 2 or 3.")
    return f"llava-fastvithd_{size.lower()}_stage{stage}"


def find_or_download_checkpoint(size: str, progress: Progress = no_progress) -> Path:
    """Return the folder of Apple's stage 3 checkpoint.

    It is looked for in the current folder, then in the user's data folder, and downloaded to the
    latter when neither holds it.

    Raises:
        CheckpointError: the archive cannot be downloaded, or it is damaged or hostile.
        PackageError: the folder cannot be written, or the disk has no room.
    """
    name = checkpoint_name(size, 3)
    if is_whole_checkpoint(Path(name)):
        return Path(name).resolve()
    return download_checkpoint(
        size, 3, user_folder() / name, base_url=APPLE_BASE_URL, progress=progress
    )


def download_checkpoint(
    size: str,
    stage: int,
    destination: Path,
    *,
    base_url: str = APPLE_BASE_URL,
    progress: Progress = no_progress,
    pauses_seconds: Sequence[float] = PAUSES_SECONDS,
) -> Path:
    """Download and unpack one of Apple's checkpoints.

    The archive grows in a `.part` file beside the destination. After an interruption the next call
    continues that file.

    Args:
        size: "0.5b", "1.5b" or "7b".
        stage: the stage of Apple's training, 2 or 3.
        destination: the folder to make. A folder that holds a whole checkpoint is left as it is.
        base_url: the address of the folder that holds the archives.
        progress: called with the stages "download" and "unpack".
        pauses_seconds: the waits between tries, as long as the file does not grow.

    Returns:
        The folder's absolute path.

    Raises:
        InputError: the size, the stage or the address is wrong.
        CheckpointError: the server does not send the archive, or it is damaged or hostile.
        PackageError: the destination holds other files or cannot be written, or the disk has no
            room.
    """
    # Other sources need no HTTP client, and importing one takes time.
    from fastvlm_onnx.export.sources.http_resume import fetch_zip, remove_part

    name = checkpoint_name(size, stage)
    if not _is_address(base_url):
        raise InputError(f"base URL is {base_url!r}; expected one like {APPLE_BASE_URL}.")
    destination = destination.absolute()
    if is_whole_checkpoint(destination):
        return destination
    if destination.is_symlink() or (destination.exists() and not _is_empty_folder(destination)):
        raise PackageError(
            f"{destination}: exists and is no whole checkpoint, so it is not replaced; "
            "remove it, or give another folder with `fastvlm-onnx download -o`."
        )
    part = destination.parent / f"{name}.zip.part"

    def check_room(archive_bytes: int) -> None:
        # Weights hardly compress: the unpacked files take at least as much space as the archive.
        needed_bytes = 2 * archive_bytes - part.stat().st_size
        check_disk_space(destination.parent, needed_bytes, "checkpoint")

    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        url = f"{base_url.rstrip('/')}/{name}.zip"
        fetch_zip(url, part, begin=check_room, progress=progress, pauses_seconds=pauses_seconds)
        _unpack(part, destination, progress)
        remove_part(part)
    except OSError as error:
        raise PackageError(
            f"{error.filename or part}: could not be written ({error.strerror or error}); make "
            "room, or give another folder with `fastvlm-onnx download -o`."
        ) from None
    return destination


def _unpack(part: Path, destination: Path, progress: Progress) -> None:
    from fastvlm_onnx.export.sources.http_resume import remove_part

    try:
        with unfinished_folder(destination) as folder:
            unpack_checkpoint(part, folder, progress)
            check_whole(folder)
    except CheckpointError as error:
        # The complete part is damaged, so a later try cannot continue it.
        remove_part(part)
        raise CheckpointError(
            f"{destination.name}: the download is no whole checkpoint and was removed "
            f"({error}); download it again."
        ) from None


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("https", "http") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # unmatched brackets, or a port that is not a number
        return False


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())
