"""A local HTTP server of one archive that can fail as servers and networks fail."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CHUNK_BYTES = 1 << 16


@dataclass
class ArchiveServer:
    """The served file and the faults; a test changes them between requests.

    Attributes:
        statuses: error statuses for the first requests. The last one is repeated if `for_good`.
        cuts: the bytes after which the connections of the first requests are cut. The last one is
            repeated if `for_good`.
        stall_seconds: the seconds that a connection is silent before it is cut.
        length: a wrong Content-Length; the right one is sent when None.
        total: a wrong total in Content-Range; the right one is sent when None.
        seconds: the pause after each 64 KiB.
        ranges: the Range header of each request, or None for a request without one.
    """

    path: str
    content: bytes
    etag: str | None = '"first"'
    modified: str | None = None
    statuses: list[int] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    stall_seconds: float = 0.0
    for_good: bool = False
    ignores_ranges: bool = False
    ignores_if_range: bool = False
    states_length: bool = True
    length: int | None = None
    total: int | None = None
    seconds: float = 0.0
    address: str = ""
    ranges: list[str | None] = field(default_factory=list)
    sent_bytes: int = 0


@contextmanager
def serve(server: ArchiveServer) -> Iterator[ArchiveServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers["Range"]
            server.ranges.append(asked)
            if self.path != server.path:
                self._refuse(404)
            elif status := _next(server.statuses, server.for_good):
                self._refuse(status)
            else:
                self._send_file(asked)

        def _send_file(self, asked: str | None) -> None:
            content, start = server.content, 0
            if_range = self.headers["If-Range"]
            known = (server.etag, server.modified)
            strong = {value for value in known if value and not value.startswith("W/")}
            is_same = if_range in strong or server.ignores_if_range
            if asked and is_same and not server.ignores_ranges:
                start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
                if start >= len(content):
                    self._refuse(416)
                    return
                self.send_response(206)
                total = server.total or len(content)
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            else:
                self.send_response(200)
            for name, value in {"ETag": server.etag, "Last-Modified": server.modified}.items():
                if value:
                    self.send_header(name, value)
            if server.states_length:
                length = len(content) - start if server.length is None else server.length
                self.send_header("Content-Length", str(length))
            self.end_headers()
            cut = _next(server.cuts, server.for_good)
            self._send(content[start:] if cut is None else content[start:][:cut])
            if cut is not None:
                time.sleep(server.stall_seconds)

        def _send(self, body: bytes) -> None:
            # A killed client closes the connection.
            with suppress(ConnectionError):
                for i in range(0, len(body), CHUNK_BYTES):
                    self.wfile.write(body[i : i + CHUNK_BYTES])
                    server.sent_bytes += len(body[i : i + CHUNK_BYTES])
                    time.sleep(server.seconds)

        def _refuse(self, status: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    server.address = f"http://127.0.0.1:{http.server_port}"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()


def _next(values: list[int], is_last_kept: bool) -> int | None:
    if not values:
        return None
    return values[0] if is_last_kept and len(values) == 1 else values.pop(0)
