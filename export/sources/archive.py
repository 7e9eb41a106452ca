"""Unpack zip archives of checkpoints; names, sizes and contents of entries are not trusted."""

import lzma
import posixpath
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Final

from fastvlm_onnx.errors import CheckpointError, PackageError
from fastvlm_onnx.export.disk.disk_space import check_disk_space
from fastvlm_onnx.progress import Progress, no_progress

# Weights hardly compress: an archive of a checkpoint unpacks to less than twice its size.
LARGEST_EXPANSION: Final = 20
_SMALL_BYTES = 10_000_000  # an archive of text may expand further, up to this size
_CHUNK_BYTES = 1 << 20
_RECORD_BYTES = 22 + 0xFFFF  # the record at the end of a zip, with the longest comment
_IN_ZIP64 = 0xFFFF  # this count means that another record holds the count
# The exceptions of zipfile and its decompressors for damaged, encrypted or unknown content.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,  # NotImplementedError is a subclass
    ValueError,
)


def unpack_checkpoint(archive: Path, folder: Path, progress: Progress = no_progress) -> None:
    """Unpack a checkpoint's files into `folder`, without the folders that contain all of them.

    All entries are checked before the first byte is written. The content of an entry is checked
    while it is written.

    Args:
        archive: a zip.
        folder: the folder to unpack into; it is made if it does not exist.
        progress: called with the stage "unpack".

    Raises:
        CheckpointError: the file is no zip or damaged, an entry would be written outside the
            folder, or the content is more than LARGEST_EXPANSION times the archive's size.
        PackageError: the disk has no room, or the folder cannot be written.
    """
    with _open_zip(archive) as zipped:
        entries = _checked_entries(archive, zipped)
        total_bytes = sum(entry.file_size for entry in entries.values())
        largest_bytes = max(LARGEST_EXPANSION * archive.stat().st_size, _SMALL_BYTES)
        if total_bytes > largest_bytes:
            raise CheckpointError(
                f"{archive}: would unpack to {total_bytes / 1e6:,.0f} MB, more than "
                f"{LARGEST_EXPANSION} times its size; unpack it yourself if you trust it."
            )
        check_disk_space(folder.parent, total_bytes, "checkpoint")
        done_bytes = 0
        progress("unpack", done_bytes, total_bytes)
        try:
            for name, entry in entries.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("xb") as file:
                    for chunk in _content(archive, zipped, entry):
                        file.write(chunk)
                        done_bytes += len(chunk)
                        progress("unpack", done_bytes, total_bytes)
        except OSError as error:
            raise PackageError(
                f"{folder}: could not be written ({error.strerror or error}); "
                f"{archive.name} needs {total_bytes / 1e6:,.0f} MB there."
            ) from None


@contextmanager
def _open_zip(archive: Path) -> Iterator[zipfile.ZipFile]:
    try:
        zipped = zipfile.ZipFile(archive)
    except _DAMAGE as error:
        raise CheckpointError(f"{archive}: not a whole zip archive ({_line(error)}).") from None
    with zipped:
        # zipfile does not notice entries that a damaged directory hides.
        if _stated_entries(archive) not in (len(zipped.infolist()), _IN_ZIP64):
            raise CheckpointError(f"{archive}: not a whole zip archive (entries are missing).")
        yield zipped


def _stated_entries(archive: Path) -> int:
    """Return the number of entries in the record at the end of a zip, or _IN_ZIP64."""
    with archive.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - _RECORD_BYTES))
        tail = file.read()
    at = tail.rfind(b"PK\5\6") + 10
    return int.from_bytes(tail[at : at + 2], "little")


def _checked_entries(
    archive: Path, zipped: zipfile.ZipFile
) -> Mapping[PurePosixPath, zipfile.ZipInfo]:
    """Return the entries to unpack by their paths in the new folder."""
    entries = []
    for entry in zipped.infolist():
        name = entry.orig_filename
        if reason := _refusal(entry):
            raise CheckpointError(
                f"{archive}: the entry {name!r} {reason}; expected plain files in folders, and "
                "nothing was unpacked."
            )
        # macOS adds these entries.
        is_from_macos = name.startswith("__MACOSX/") or posixpath.basename(name).startswith("._")
        if not entry.is_dir() and not is_from_macos:
            entries.append((posixpath.normpath(name), entry))
    if not entries:
        raise CheckpointError(f"{archive}: holds no files, expected a FastVLM checkpoint.")
    # On some disks, `Config.json` and `config.json` are one file.
    taken = {name.casefold() for name, _ in entries}
    parents = {str(parent) for name in taken for parent in PurePosixPath(name).parents}
    if len(taken) < len(entries) or parents & taken:
        raise CheckpointError(f"{archive}: two of its entries have the same name.")
    top = posixpath.commonpath([posixpath.dirname(name) for name, _ in entries])
    return {PurePosixPath(name).relative_to(top): entry for name, entry in entries}


def _refusal(entry: zipfile.ZipInfo) -> str | None:
    """Return the reason why an entry cannot be unpacked inside a folder, or None if it can."""
    name = entry.orig_filename
    kind = stat.S_IFMT(entry.external_attr >> 16)  # 0 where the archive was not made on Unix
    if name.startswith("/") or ".." in name.split("/"):
        return "leads out of the folder"
    # On Windows, a backslash separates folders and a colon follows a drive. A NUL ends a name.
    if not name or any(character in name for character in "\\:\0"):
        return "has a name that is not the same everywhere"
    if kind not in (0, stat.S_IFDIR if entry.is_dir() else stat.S_IFREG):
        return "is a link or device"
    if entry.is_dir() and entry.file_size:
        return "is a folder with content"
    if entry.flag_bits & 1:
        return "is encrypted"
    return None


def _content(archive: Path, zipped: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Iterator[bytes]:
    """Yield an entry in pieces; its length and CRC are checked at the end."""
    size_bytes = 0
    try:
        with zipped.open(entry) as packed:
            while chunk := packed.read(_CHUNK_BYTES):
                size_bytes += len(chunk)
                yield chunk
        if size_bytes != entry.file_size:
            raise EOFError(f"{size_bytes} bytes of {entry.file_size}")
    except _DAMAGE as error:
        raise CheckpointError(
            f"{archive}: {entry.filename!r} in it is damaged ({_line(error)})."
        ) from None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
