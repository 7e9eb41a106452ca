"""Files whose checksum was right, so that a later process need not read gigabytes again.

A file is known by its identity: device, inode, size and the times of its last changes. Every write
through the file system changes the time of the last change of an inode, and no program can set
it. Damage below the file system, of a failing disk, is found by `fastvlm-onnx inspect`, which
always reads the files. Standard library only.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from fastvlm_onnx.errors import InputError
from fastvlm_onnx.user_data import cache_folder

MEMORY_FILE: Final = "checked-files.json"
LIMIT: Final = 1000  # files; a package has about ten
# The coarsest clock of a file system ticks every two seconds. Within a tick, a second write leaves
# the times as they are.
SETTLED_SECONDS: Final = 10
_lock = threading.Lock()


def file_identity(path: Path) -> str | None:
    """Return a text that changes whenever the file is written or replaced.

    Returns:
        None if the file changed a moment ago, or on Windows, where `st_ctime` is the time of
        creation.

    Raises:
        OSError: the file is missing or cannot be read.
    """
    stat = path.stat()
    if sys.platform == "win32":
        return None
    if time.time() - stat.st_ctime < SETTLED_SECONDS:
        return None
    parts = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    return "-".join(map(str, parts))


def checked_files() -> dict[str, str]:
    """Return the checksum of each known file, by identity; empty if none can be read."""
    try:
        memory = json.loads(_memory_file().read_text("utf-8"))
    except (OSError, ValueError, RecursionError, InputError):
        return {}
    if not isinstance(memory, dict):
        return {}
    return {identity: checksum for identity, checksum in memory.items() if type(checksum) is str}


def remember_checked(checked: Mapping[str, str]) -> None:
    """Add files to the memory, which keeps the last 1,000. A failure to write it is ignored.

    Of two processes that write at once, the files of one may be forgotten and are read again.

    Args:
        checked: the right checksum of each file, by identity.
    """
    if not checked:
        return
    with _lock:
        memory = checked_files() | dict(checked)
        kept = dict(list(memory.items())[-LIMIT:])
        try:
            file = _memory_file()
            new = file.with_name(f".{file.name}-{os.getpid()}")
            file.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(json.dumps(kept, indent=0) + "\n", encoding="utf-8")
            new.replace(file)
        except (OSError, InputError):
            return


def _memory_file() -> Path:
    """Return the file of the memory.

    Raises:
        InputError: this user has no home folder.
    """
    return cache_folder() / MEMORY_FILE
