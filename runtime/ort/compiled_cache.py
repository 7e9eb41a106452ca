"""The folder of all compiled graphs: its records, its limit and its deletion.

A folder in it holds one compiled graph. `entry.json` comes last and lists the files with their
checksums, since providers read a damaged file without an error and give wrong numbers. The
least recently used graphs are deleted beyond a limit.
"""

import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from fastvlm_onnx.checked_files import checked_files, file_identity, remember_checked
from fastvlm_onnx.errors import InputError
from fastvlm_onnx.user_data import HOME_VARIABLE, cache_folder

LIMIT_VARIABLE: Final = "FASTVLM_ONNX_CACHE_MB"
DEFAULT_LIMIT_MB: Final = 2000  # the fp32 vision encoder takes 492 MB
RECORD_FILE: Final = "entry.json"
UNFINISHED: Final = ".unfinished-"
OLD_SECONDS: Final = 24 * 3600  # an unfinished folder this old is left by a process that was killed
CHUNK_BYTES: Final = 1 << 20
log = logging.getLogger("fastvlm_onnx")


@dataclass(frozen=True)
class Record:
    """The content of `entry.json`.

    Attributes:
        graph: the name of the graph's file in its package.
        provider: the provider's short name.
        version: the provider's version.
        placement: the nodes that the provider took when it compiled the graph, by ONNX Runtime's
            name of the provider and by operator.
        files: size in bytes and CRC-32 of each file; empty where the provider changes its files.
    """

    graph: str
    provider: str
    version: str
    placement: Mapping[str, Mapping[str, int]]
    files: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Entry:
    """A compiled graph that is listed.

    Attributes:
        folder: the folder of the entry.
        record: its description; None for a folder that a process left unfinished or damaged.
        size_bytes: the size of all its files.
        last_used: seconds since 1970.
    """

    folder: Path
    record: Record | None
    size_bytes: int
    last_used: float


def limit_bytes() -> int:
    """Return the largest size of all compiled graphs; 0 keeps none.

    Raises:
        InputError: FASTVLM_ONNX_CACHE_MB is no number of megabytes.
    """
    text = os.environ.get(LIMIT_VARIABLE, str(DEFAULT_LIMIT_MB))
    if not text.isdecimal():
        raise InputError(
            f"{LIMIT_VARIABLE} is {text!r}; expected a number of megabytes, or 0 to keep no "
            "compiled graphs."
        )
    return int(text) * 1_000_000


def entries() -> list[Entry]:
    """Return all compiled graphs, the last used first."""
    root = compiled_folder()
    try:
        folders = [path for path in root.iterdir() if path.is_dir()]
    except OSError:
        return []
    found = []
    for folder in folders:
        try:
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            mark = folder / RECORD_FILE
            used = (mark if mark.exists() else folder).stat().st_mtime
        except OSError:  # another process deleted it
            continue
        found.append(Entry(folder, read_record(folder), size, used))
    return sorted(found, key=lambda entry: -entry.last_used)


def trim(keep: Path | None = None) -> None:
    """Delete the least recently used graphs beyond the limit, and old unfinished folders.

    Args:
        keep: a folder that stays.
    """
    total = 0
    for entry in entries():
        if entry.folder.name.startswith(UNFINISHED):
            if time.time() - entry.last_used > OLD_SECONDS:
                shutil.rmtree(entry.folder, ignore_errors=True)
            continue
        total += entry.size_bytes
        if total > limit_bytes() and entry.folder != keep:
            total -= entry.size_bytes
            shutil.rmtree(entry.folder, ignore_errors=True)


def clear() -> int:
    """Delete all compiled graphs and everything else in the cache folder.

    Returns:
        The number of bytes that were deleted.
    """
    before = _size_of(cache_folder())
    shutil.rmtree(cache_folder(), ignore_errors=True)
    return before - _size_of(cache_folder())


def warn_of_folder(reason: str) -> None:
    """Log that compiled graphs cannot be kept."""
    log.warning(
        "%s: compiled graphs cannot be kept there (%s), so each start compiles them again; free or "
        "unlock the folder, name another with %s, or set %s=0.",
        compiled_folder(),
        reason,
        HOME_VARIABLE,
        LIMIT_VARIABLE,
    )


def compiled_folder() -> Path:
    """Return the folder of all compiled graphs."""
    return cache_folder() / "compiled"


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def write_record(folder: Path, record: Record) -> None:
    """Describe a folder, last of all its files."""
    (folder / RECORD_FILE).write_text(json.dumps(asdict(record)) + "\n", encoding="utf-8")


def read_record(folder: Path) -> Record | None:
    """Return the description of a folder; None if there is none, or none that can be read."""
    try:
        record = Record(**json.loads((folder / RECORD_FILE).read_text("utf-8")))
        files = {name: (int(size), int(crc)) for name, (size, crc) in record.files.items()}
        placement = {ep: dict(operators) for ep, operators in record.placement.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return Record(record.graph, record.provider, record.version, placement, files)


def is_whole(folder: Path, record: Record) -> bool:
    """Whether the files are those that the record lists; unchanged files are not read again."""
    known, right = checked_files(), {}
    try:
        for name, (size, crc) in record.files.items():
            path, checksum = folder / name, f"CRC-32 {crc}"
            identity = file_identity(path)
            if identity and known.get(identity) == checksum:
                continue
            if path.stat().st_size != size or size_and_crc(path) != (size, crc):
                return False
            if identity:
                right[identity] = checksum
    except OSError:
        return False
    remember_checked(right)
    return True


def size_and_crc(path: Path) -> tuple[int, int]:
    """Return a file's size and its CRC-32, which tells damage in half the time of SHA-256."""
    size = crc = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return size, crc
