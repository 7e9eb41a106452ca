"""Download of a zip over HTTP that continues after an interruption, also in a later run.

The content of the zip is not known here. The file is complete only once `fetch_zip` returns.
"""

import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Final

from filelock import FileLock, Timeout

from fastvlm_onnx.errors import CheckpointError, PackageError
from fastvlm_onnx.progress import Progress

TIMEOUT_SECONDS: Final = 30
_CHUNK_BYTES: Final = 1 << 18
_ZIP_BEGINS: Final = b"PK"
# These statuses, and those from 500 on, may be gone at the next try.
_BUSY: Final = (408, 425, 429)


class _CutError(Exception):
    """The connection or the server failed; a later try may succeed and continue the part."""


@dataclass(frozen=True)
class _Version:
    """The version of a remote file, so that parts of two versions are never joined.

    Attributes:
        url: the address of the file.
        size_bytes: the length of the whole file.
        validator: a strong ETag or Last-Modified, for If-Range; None if the server states neither,
            and then a download cannot be continued.
    """

    url: str
    size_bytes: int
    validator: str | None


def fetch_zip(
    url: str,
    part: Path,
    *,
    begin: Callable[[int], None],
    progress: Progress,
    pauses_seconds: Sequence[float],
) -> None:
    """Download a zip to the file `part`, and continue the part of an earlier run.

    Args:
        url: the address of the zip.
        part: the file that grows. The files `part`.json and `part`.lock lie beside it meanwhile.
        begin: called with the size of the whole zip in bytes when the server begins to send it.
        progress: called with the stage "download".
        pauses_seconds: the waits before further tries, as long as the part does not grow.

    Raises:
        CheckpointError: the server does not have the file, or does not send all of it.
        PackageError: another process writes the same part.
        OSError: the part cannot be written.
    """
    with _open_exclusively(part) as file:
        # The largest size so far: a server that always restarts and cuts must come to an end.
        furthest_bytes, pauses = _size(file), iter(pauses_seconds)
        while True:
            try:
                _fetch_rest(url, file, _notes(part), begin, progress)
                return
            except _CutError as error:
                size_bytes = _size(file)
                if size_bytes > furthest_bytes:
                    furthest_bytes, pauses = size_bytes, iter(pauses_seconds)
                pause = next(pauses, None)
                if pause is None:
                    raise CheckpointError(
                        f"{url}: {error} ({len(pauses_seconds) + 1} tries without progress); check "
                        "the connection and run it again, which continues the download."
                    ) from None
                time.sleep(pause)


def remove_part(part: Path) -> None:
    """Remove a part and the files beside it."""
    for path in (part, _notes(part), _lock(part)):
        path.unlink(missing_ok=True)


def _fetch_rest(
    url: str, file: BinaryIO, notes: Path, begin: Callable[[int], None], progress: Progress
) -> None:
    """Make one request for the missing bytes, and append them to the part."""
    have_bytes = _size(file)
    known = _read_notes(notes, url)
    if known and have_bytes == known.size_bytes:
        return
    resumed = known if known and 0 < have_bytes < known.size_bytes else None
    headers = {"User-Agent": "fastvlm-onnx"}
    if resumed and resumed.validator:
        headers |= {"Range": f"bytes={have_bytes}-", "If-Range": resumed.validator}
    with _open_url(urllib.request.Request(url, headers=headers), file) as response:
        chunks = iter(lambda: _read(response), b"")
        if response.status == 206:
            version = _resumed_version(response, resumed, have_bytes)
            if version is None:
                file.truncate(0)
                raise _CutError("the server sent another part of the file than was asked for")
        else:
            version = _whole_version(response, url)
            # The part is kept until the first bytes are seen: a log-in page must not replace it.
            first = next(chunks, b"")
            _check_zip_begins(first, response, url)
            chunks = chain([first], chunks)
            file.truncate(0)
            have_bytes = 0
            notes.write_text(json.dumps(asdict(version)), encoding="utf-8")
        begin(version.size_bytes)
        progress("download", have_bytes, version.size_bytes)
        for chunk in chunks:
            file.write(chunk)
            have_bytes += len(chunk)
            progress("download", min(have_bytes, version.size_bytes), version.size_bytes)
        file.flush()
    if have_bytes > version.size_bytes:
        file.truncate(0)
        raise _CutError("the server sent more than the file's length")
    if have_bytes < version.size_bytes:
        raise _CutError(f"the connection ended after {have_bytes} of {version.size_bytes} bytes")


@contextmanager
def _open_url(
    request: urllib.request.Request, file: BinaryIO
) -> Iterator[http.client.HTTPResponse]:
    """Open the response if the server sends the file or a part of it."""
    url = request.full_url
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the remote file is now shorter than the part
            file.truncate(0)
        elif error.code < 500 and error.code not in _BUSY:
            raise CheckpointError(
                f"{url}: cannot be downloaded, the server answered with status {error.code}; "
                "check whether the file has moved, or try again later."
            ) from None
        raise _CutError(f"the server answered with status {error.code}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise _CutError(f"the server cannot be reached ({reason})") from None
    with response:
        yield response


def _check_zip_begins(first: bytes, response: http.client.HTTPResponse, url: str) -> None:
    if len(first) < len(_ZIP_BEGINS):
        raise _CutError("the connection ended before the first byte")
    if not first.startswith(_ZIP_BEGINS):
        raise CheckpointError(
            f"{url}: found {response.headers.get_content_type()}, expected a zip archive; "
            "open the address in a browser to see the page that was sent."
        )


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(_CHUNK_BYTES)
    except (OSError, http.client.HTTPException):
        return b""  # the caller compares the length


def _whole_version(response: http.client.HTTPResponse, url: str) -> _Version:
    length = response.headers.get("Content-Length", "")
    if response.status != 200 or not re.fullmatch(r"\d{1,15}", length):
        raise CheckpointError(
            f"{url}: the server answered with status {response.status} and length {length!r}, "
            "expected a file of a stated length; try again later."
        )
    etag = response.headers.get("ETag", "")
    strong = (
        etag if etag.startswith('"') else None
    )  # a weak ETag, W/"...", does not promise equal bytes
    return _Version(url, int(length), strong or response.headers.get("Last-Modified"))


def _resumed_version(
    response: http.client.HTTPResponse, asked: _Version | None, have_bytes: int
) -> _Version | None:
    """Return `asked`, or None if the response is another part or of another version."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    validators = {response.headers.get(name) for name in ("ETag", "Last-Modified")} - {None}
    if asked is None or found is None or (validators and asked.validator not in validators):
        return None
    matches = (int(found[1]), int(found[2])) == (have_bytes, asked.size_bytes)
    return asked if matches else None


@contextmanager
def _open_exclusively(part: Path) -> Iterator[BinaryIO]:
    """Open the part to append to it, in one process at a time."""
    lock = FileLock(_lock(part), blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise PackageError(
            f"{part}: another process is downloading it; wait until that has ended."
        ) from None
    except OSError:
        pass  # a file system without locks, or a folder that cannot be written
    try:
        with part.open("ab") as file:
            yield file
    finally:
        # Windows refuses to remove the lock's file while it is open; it is harmless if it stays.
        with suppress(OSError):
            if part.stat().st_size == 0:
                remove_part(part)
            _lock(part).unlink(missing_ok=True)
        lock.release()


def _size(file: BinaryIO) -> int:
    return file.seek(0, 2)


def _notes(part: Path) -> Path:
    """Return the path of the file that holds the part's _Version."""
    return part.with_name(f"{part.name}.json")


def _lock(part: Path) -> Path:
    return part.with_name(f"{part.name}.lock")


def _read_notes(notes: Path, url: str) -> _Version | None:
    try:
        version = _Version(**json.loads(notes.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return version if version.url == url else None
