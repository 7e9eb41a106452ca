"""A folder that appears complete or not at all."""

import ctypes
import glob
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from fastvlm_onnx.errors import PackageError
from fastvlm_onnx.names import MANIFEST_FILE

# <winnt.h>, <winerror.h>, <minwinbase.h>
_QUERY_LIMITED_INFORMATION: Final = 0x1000
_ACCESS_DENIED: Final = 5
_STILL_ACTIVE: Final = 259


def check_destination(folder: Path, overwrite: bool) -> None:
    """Raise PackageError if `folder` exists and must not be replaced.

    Only an exported package or an empty folder is replaced, so that `-o .` never deletes a project.

    Args:
        folder: the destination of an export.
        overwrite: whether a package may be replaced.
    """
    _recover_replaced(folder)
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.is_dir() and (folder / MANIFEST_FILE).is_file():
        if not overwrite:
            raise PackageError(
                f"{folder}: already holds a package; give --overwrite to replace it, "
                "or another folder with -o."
            )
    elif folder.exists() or folder.is_symlink():
        raise PackageError(
            f"{folder}: exists and is no package, so it is not replaced; give a new folder with -o."
        )


@contextmanager
def unfinished_folder(destination: Path) -> Iterator[Path]:
    """Make a hidden folder that is renamed to `destination` on success and removed on failure.

    Yields:
        The hidden folder, beside `destination`.

    Raises:
        PackageError: the parent folder cannot be written.
    """
    parent, name = destination.parent, destination.name
    unfinished = parent / f".{name}.unfinished-{os.getpid()}"
    was_refused = False
    # A signal may come as soon as the folder is there.
    try:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(parent, name)
            unfinished.mkdir()
        except OSError as error:
            was_refused = True  # what is there may be of another thread
            raise PackageError(
                f"{parent}: cannot be written ({error.strerror}); give another folder with -o."
            ) from None
        yield unfinished
        _put_in_place(unfinished, destination)
    finally:
        if not was_refused:
            shutil.rmtree(unfinished, ignore_errors=True)


def _put_in_place(unfinished: Path, destination: Path) -> None:
    if not destination.exists():
        unfinished.rename(destination)
        return
    # The old package is kept under a hidden name until the new package has taken its place.
    old = unfinished.with_name(unfinished.name.replace(".unfinished-", ".replaced-"))
    try:
        destination.rename(old)
    except PermissionError as error:
        # Windows moves no folder while a program maps a file in it, as an open model does.
        raise PackageError(
            f"{destination}: cannot be replaced ({error.strerror}); close the programs that have "
            "the package open, then export again."
        ) from None
    try:
        unfinished.rename(destination)
    except BaseException:
        old.rename(destination)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _recover_replaced(folder: Path) -> None:
    """Give a package its name back, if an export was killed between its two renames."""
    if not os.path.isdir(folder.parent):
        return
    for path in folder.parent.glob(f".{glob.escape(folder.name)}.replaced-*"):
        match = re.fullmatch(r".*\.replaced-(\d+)", path.name)
        if not match or _is_running(int(match[1])):
            continue
        try:
            if folder.exists():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.rename(folder)
        except OSError:
            continue  # the destination cannot be written, which the export says itself


def _remove_abandoned(parent: Path, name: str) -> None:
    """Remove the hidden folders of earlier exports to the same destination that were killed."""
    for path in parent.glob(f".{glob.escape(name)}.unfinished-*"):
        match = re.fullmatch(r".*\.unfinished-(\d+)", path.name)
        if match and not _is_running(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)


def _is_running(pid: int) -> bool:
    if sys.platform == "win32":
        return _is_running_on_windows(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _is_running_on_windows(pid: int) -> bool:
    """Ask the kernel; `os.kill(pid, 0)` would interrupt the process there."""
    kernel32 = getattr(ctypes, "windll").kernel32  # noqa: B009  mypy knows it on Windows alone
    process = kernel32.OpenProcess(_QUERY_LIMITED_INFORMATION, False, pid)
    if not process:
        return bool(kernel32.GetLastError() == _ACCESS_DENIED)
    exit_code = ctypes.c_ulong()
    kernel32.GetExitCodeProcess(process, ctypes.byref(exit_code))
    kernel32.CloseHandle(process)
    return exit_code.value == _STILL_ACTIVE
