"""Compare the files of a package with its manifest. Standard library only."""

import hashlib
import os
from pathlib import Path

from fastvlm_onnx.checked_files import checked_files, file_identity, remember_checked
from fastvlm_onnx.errors import PackageError
from fastvlm_onnx.package import FileEntry, Manifest
from fastvlm_onnx.untrusted_files import regular_file_size


def check_files(folder: Path, names: list[str], manifest: Manifest) -> None:
    """Compare the size and the SHA-256 of files with the manifest.

    Raises:
        PackageError: a file is missing, cut or altered.
    """
    check_sizes(folder, names, manifest)
    check_hashes(folder, names, manifest)


def check_sizes(folder: Path, names: list[str], manifest: Manifest) -> None:
    """Compare the size of files with the manifest.

    Raises:
        PackageError: a file is missing or cut, is no regular file, or is a link out of the folder.
    """
    for name in names:
        entry = manifest.files[name]
        path = folder / name
        try:
            size = regular_file_size(path, PackageError)
        except FileNotFoundError:
            raise PackageError(
                f"{path}: missing, expected {entry.bytes:,} bytes; "
                "copy or export the package again."
            ) from None
        if size != entry.bytes:
            raise PackageError(
                f"{path}: found {size:,} bytes, expected {entry.bytes:,}; "
                "the file was cut or replaced: copy or export the package again."
            )
        _check_link(path)


def _check_link(path: Path) -> None:
    """Raise PackageError if a symbolic link leaves its folder.

    Hugging Face's cache keeps each file of `snapshots/REVISION` once, in `blobs` beside it.
    """
    if not path.is_symlink():
        return
    folder, target = path.parent.resolve(), path.resolve()
    allowed = [folder]
    if folder.parent.name == "snapshots":
        allowed.append(folder.parent.parent / "blobs")
    if target.parent not in allowed:
        raise PackageError(
            f"{path}: is a link to {target}, outside the package; copy the file into the folder."
        )


def check_hashes(
    folder: Path, names: list[str], manifest: Manifest, *, remember: bool = False
) -> None:
    """Compare the SHA-256 of files with the manifest.

    Args:
        remember: pass over files that were right before and have not changed since, and remember
            those that are right now. Every file is read when False.

    Raises:
        PackageError: a file is altered or cannot be read.
    """
    known = checked_files() if remember else {}
    right = {}
    for name in names:
        expected = manifest.files[name].sha256
        try:
            identity = file_identity(folder / name) if remember else None
            if identity and known.get(identity) == expected:
                continue
            found = sha256_of(folder / name)
        except OSError as error:
            raise PackageError(
                f"{folder / name}: cannot be read ({error.strerror}); check its permissions."
            ) from None
        if found != expected:
            raise PackageError(
                f"{folder / name}: sha256 is {found[:12]}…, expected {expected[:12]}…; "
                "the file was altered: copy or export the package again."
            )
        if identity:
            right[identity] = found
    remember_checked(right)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_file(path: Path) -> FileEntry:
    """Return the manifest's entry for a finished file."""
    return FileEntry(os.stat(path).st_size, sha256_of(path))
