"""Exported packages on the Hugging Face hub."""

import glob
import os
from pathlib import Path

from fastvlm_onnx.errors import PackageError
from fastvlm_onnx.hub_snapshot import download_file, download_snapshot, is_hub_id
from fastvlm_onnx.names import MANIFEST_FILE
from fastvlm_onnx.package import read_manifest


def package_folder(package: str | os.PathLike[str], *, shows_progress: bool = False) -> Path:
    """Return the folder of a package: a path as it is, a hub id after a download.

    Args:
        package: a path, or a text that may also be a hub id. A path that exists is never an id.
        shows_progress: show progress bars on stderr, if that is a terminal.

    Raises:
        PackageError: the package cannot be downloaded.
    """
    if isinstance(package, str) and is_hub_id(package) and not os.path.exists(package):
        return fetch_package(package, shows_progress=shows_progress)
    return Path(package)


def fetch_package(hub_id: str, *, shows_progress: bool = False) -> Path:
    """Download an exported package, or take it from Hugging Face's cache.

    The manifest is downloaded and checked first. The files that it names follow, and no others.

    Args:
        hub_id: owner/name, or owner/name@revision.
        shows_progress: show progress bars on stderr, if that is a terminal.

    Returns:
        A folder in Hugging Face's cache.

    Raises:
        PackageError: the repository holds no exported package, or it cannot be downloaded.
    """
    manifest_file = download_file(hub_id, MANIFEST_FILE, PackageError)
    if manifest_file is None:
        raise PackageError(
            f"{hub_id}: found no {MANIFEST_FILE} on Hugging Face; expected an exported package. If "
            f"this is a checkpoint, run `fastvlm-onnx export {hub_id} -o DIR` first."
        )
    folder = manifest_file.parent
    files = list(read_manifest(folder).files)
    # The folder's name is the commit: the branch may move between the two downloads.
    commit_id = f"{hub_id.partition('@')[0]}@{folder.name}"
    patterns = [MANIFEST_FILE, *map(glob.escape, files)]
    folder = download_snapshot(commit_id, patterns, PackageError, shows_progress=shows_progress)
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise PackageError(
            f"{hub_id}: {len(missing)} of {len(files)} files could not be downloaded, "
            f"{missing[0]} for example; connect and try again, or give a folder."
        )
    return folder
