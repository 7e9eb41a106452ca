"""One zip over HTTP, resumed where an earlier try or an earlier run was cut.

It knows nothing of what the zip holds. The file counts as whole only once `fetch_zip` returns.
"""

import http.client
import json
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Final

from fastvlm_onnx.errors import CheckpointError, PackageError
from fastvlm_onnx.progress import Progress

TIMEOUT_SECONDS: Final = 30
_CHUNK_BYTES: Final = 1 << 18
_ZIP_BEGINS: Final = b"PK"
# Statuses that another try may cure, with those from 500 on.
_BUSY: Final = (408, 425, 429)


class _CutError(Exception):
    """The connection or the server failed for now; what was fetched is kept."""


@dataclass(frozen=True)
class _Version:
    """What a part is a part of: pieces of two versions must not be spliced.

    Attributes:
        validator: a strong ETag or Last-Modified, for If-Range; None where the server gives none,
            and then nothing can be resumed.
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
    """Bring a zip into the file `part`, going on where an earlier run was cut.

    Args:
        begin: called with the size of the whole zip once the server has begun to send it.
        pauses_seconds: waits before the next tries while the file does not grow.

    Raises:
        CheckpointError: the server has no such file, or could not be got to send all of it.
        PackageError: another process is filling the same part.
        OSError: the part cannot be written.
    """
    with _exclusively(part) as file:
        # Restarts from nothing are no growth: a server that always cuts must come to an end.
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
                        f"{url}: {error}, and did so {len(pauses_seconds) + 1} times; check "
                        "the connection and run it again, it goes on where it stopped."
                    ) from None
                time.sleep(pause)


def remove_part(part: Path) -> None:
    """Forget what was fetched."""
    part.unlink(missing_ok=True)
    _notes(part).unlink(missing_ok=True)


def _fetch_rest(
    url: str, file: BinaryIO, notes: Path, begin: Callable[[int], None], progress: Progress
) -> None:
    have_bytes = _size(file)
    known = _read_notes(notes, url)
    if known and have_bytes == known.size_bytes:
        return
    resumed = known if known and 0 < have_bytes < known.size_bytes else None
    headers = {"User-Agent": "fastvlm-onnx"}
    if resumed and resumed.validator:
        headers |= {"Range": f"bytes={have_bytes}-", "If-Range": resumed.validator}
    with _answer(urllib.request.Request(url, headers=headers), file) as response:
        if response.status == 206:
            version = _resumed_version(response, resumed, have_bytes)
            if version is None:
                file.truncate(0)
                raise _CutError("the server sent another part of the file than was asked for")
            chunk = b""
        else:
            version = _whole_version(response, url)
            # A log-in page in between must not cost what was fetched before.
            chunk = _read(response)
            if len(chunk) < len(_ZIP_BEGINS):
                raise _CutError("the connection ended before the first byte")
            if not chunk.startswith(_ZIP_BEGINS):
                raise CheckpointError(
                    f"{url}: found {response.headers.get_content_type()}, expected a zip archive; "
                    "open the address in a browser to see what is in the way."
                )
            file.truncate(0)
            have_bytes = 0
            notes.write_text(json.dumps(asdict(version)), encoding="utf-8")
        begin(version.size_bytes)
        progress("download", have_bytes, version.size_bytes)
        while chunk := chunk or _read(response):
            file.write(chunk)
            have_bytes += len(chunk)
            progress("download", min(have_bytes, version.size_bytes), version.size_bytes)
            chunk = b""
        file.flush()
    if have_bytes > version.size_bytes:
        file.truncate(0)
        raise _CutError("the server sent more than the file's length")
    if have_bytes < version.size_bytes:
        raise _CutError(f"the connection ended after {have_bytes} of {version.size_bytes} bytes")


@contextmanager
def _answer(request: urllib.request.Request, file: BinaryIO) -> Iterator[http.client.HTTPResponse]:
    """The server's answer if it sends the file or a part of it."""
    url = request.full_url
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the file has become shorter than what was fetched of it
            file.truncate(0)
        elif error.code < 500 and error.code not in _BUSY:
            raise CheckpointError(
                f"{url}: cannot be downloaded, the server answered with status {error.code}; "
                "look whether the file has moved, or try again later."
            ) from None
        raise _CutError(f"the server answered with status {error.code}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise _CutError(f"the server cannot be reached ({reason})") from None
    with response:
        yield response


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(_CHUNK_BYTES)
    except (OSError, http.client.HTTPException):
        return b""  # cut: the length tells


def _whole_version(response: http.client.HTTPResponse, url: str) -> _Version:
    length = response.headers.get("Content-Length", "")
    if response.status != 200 or not re.fullmatch(r"\d{1,15}", length):
        raise CheckpointError(
            f"{url}: the server answered with status {response.status} and length {length!r}, "
            "expected a file of a stated length; try again later."
        )
    etag = response.headers.get("ETag", "")
    strong = etag if etag.startswith('"') else None  # W/"..." may stand for other bytes
    return _Version(url, int(length), strong or response.headers.get("Last-Modified"))


def _resumed_version(
    response: http.client.HTTPResponse, asked: _Version | None, have_bytes: int
) -> _Version | None:
    """What was asked for, or None if the answer is another part or of another version."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    validators = {response.headers.get(name) for name in ("ETag", "Last-Modified")} - {None}
    if asked is None or found is None or (validators and asked.validator not in validators):
        return None
    matches = (int(found[1]), int(found[2])) == (have_bytes, asked.size_bytes)
    return asked if matches else None


@contextmanager
def _exclusively(part: Path) -> Iterator[BinaryIO]:
    """The part, opened to append to, by one process at a time."""
    with part.open("ab") as file:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise PackageError(
                    f"{part}: another process is downloading it; wait until that has ended."
                ) from None
            except OSError:
                pass  # a file system without locks
        try:
            yield file
        finally:
            if _size(file) == 0:
                with suppress(OSError):
                    remove_part(part)


def _size(file: BinaryIO) -> int:
    return file.seek(0, 2)


def _notes(part: Path) -> Path:
    """Beside the part: which version of which file it is a part of."""
    return part.with_name(f"{part.name}.json")


def _read_notes(notes: Path, url: str) -> _Version | None:
    try:
        version = _Version(**json.loads(notes.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return version if version.url == url else None
