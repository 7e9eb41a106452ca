"""Apple's own checkpoints: six archives, fetched, checked and unpacked whole or not at all."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import click

from fastvlm_onnx.errors import CheckpointError, FastVLMError, InputError, PackageError
from fastvlm_onnx.export.checkpoint.reader import open_checkpoint
from fastvlm_onnx.export.disk.atomic_folder import unfinished_folder
from fastvlm_onnx.export.sources.archive import check_room, unpack_checkpoint
from fastvlm_onnx.export.sources.http_resume import fetch_zip, remove_part
from fastvlm_onnx.export.sources.locate import SIZES
from fastvlm_onnx.progress import Progress, no_progress
from fastvlm_onnx.user_data import user_folder

APPLE_BASE_URL: Final = "https://ml-site.cdn-apple.com/datasets/fastvlm"
STAGES: Final = (2, 3)
PAUSES_SECONDS: Final = (1, 2, 4, 8)
LICENSE_NOTICE: Final = """\
Apple's FastVLM weights are licensed for non-commercial research only: no product, no service.
That holds for all that is made from them; read LICENSE_MODEL in github.com/apple/ml-fastvlm."""


def checkpoint_name(size: str, stage: int) -> str:
    """What Apple calls the checkpoint: `llava-fastvithd_0.5b_stage3`.

    Raises:
        InputError: there is no such size or stage.
    """
    if size.lower() not in SIZES:
        raise InputError(f"size is {size!r}; expected one of {', '.join(SIZES)}.")
    if stage not in STAGES:
        raise InputError(f"stage is {stage}; expected 2 or 3.")
    return f"llava-fastvithd_{size.lower()}_stage{stage}"


def downloaded_checkpoint(size: str, progress: Progress = no_progress) -> Path:
    """Apple's stage 3 checkpoint: the one in this folder, else in the user's, else downloaded.

    Raises:
        CheckpointError, PackageError: as download_checkpoint.
    """
    here = Path(checkpoint_name(size, 3))
    if is_whole_checkpoint(here):
        return here.resolve()
    folder = user_folder() / here
    return download_checkpoint(size, 3, folder, base_url=APPLE_BASE_URL, progress=progress)


def is_whole_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a checkpoint that can be exported, weights in full."""
    if not folder.is_dir():
        return False
    try:
        open_checkpoint(folder)
    except FastVLMError:
        return False
    return True


def download_checkpoint(
    size: str,
    stage: int,
    destination: Path,
    *,
    base_url: str = APPLE_BASE_URL,
    progress: Progress = no_progress,
    pauses_seconds: Sequence[float] = PAUSES_SECONDS,
) -> Path:
    """Download and unpack one of Apple's checkpoints; says on stderr what the licence allows.

    What was fetched stays in a `.part` file beside the destination until all of it is there, and
    the next call goes on from it.

    Args:
        destination: the folder to make. One that holds a whole checkpoint is left as it is.
        pauses_seconds: waits between tries, as long as none brings the file further.

    Returns:
        The folder, absolute.

    Raises:
        InputError: there is no such size or stage, or the address is none.
        CheckpointError: the server does not give the archive, or it is damaged or hostile.
        PackageError: the destination holds something else or cannot be written, or no room.
    """
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
    is_announced = False

    def begin(archive_bytes: int) -> None:
        nonlocal is_announced
        # Weights hardly compress: unpacked, they take at least as much again.
        check_room(destination.parent, 2 * archive_bytes - part.stat().st_size)
        if not is_announced:
            click.echo(LICENSE_NOTICE, err=True)
        is_announced = True

    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        url = f"{base_url.rstrip('/')}/{name}.zip"
        fetch_zip(url, part, begin=begin, progress=progress, pauses_seconds=pauses_seconds)
        _unpack(part, destination, progress)
        remove_part(part)
    except OSError as error:
        raise PackageError(
            f"{error.filename or part}: could not be written ({error.strerror or error}); make "
            "room, or give another folder with `fastvlm-onnx download -o`."
        ) from None
    return destination


def _unpack(part: Path, destination: Path, progress: Progress) -> None:
    try:
        with unfinished_folder(destination) as folder:
            unpack_checkpoint(part, folder, progress)
            open_checkpoint(folder)
    except CheckpointError as error:
        # Going on from it would end the same way.
        remove_part(part)
        raise CheckpointError(
            f"{destination.name}: what was downloaded is no whole checkpoint and was removed "
            f"({error}); download it again."
        ) from None


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("https", "http") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets that do not match, or a port that is no number
        return False


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())
