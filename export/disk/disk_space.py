"""Free space on a disk, checked before anything is written to it."""

import shutil
from pathlib import Path

from fastvlm_onnx.errors import PackageError


def check_disk_space(folder: Path, needed_bytes: int, content: str) -> None:
    """Raise PackageError if the disk of a folder has too little free space.

    Args:
        folder: a folder on the disk; it need not exist yet.
        needed_bytes: the space that the content takes.
        content: the noun for the error message, such as "checkpoint".

    Raises:
        PackageError: fewer than `needed_bytes` are free.
    """
    existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < needed_bytes:
        raise PackageError(
            f"{existing}: {free_bytes / 1e6:,.0f} MB are free, and the {content} needs "
            f"{needed_bytes / 1e6:,.0f} MB; make room, or give a folder on another disk."
        )
