"""A Hugging Face hub of one repository, served from a folder over real HTTP; and no hub at all."""

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serve_hub(repository: str, folder: Path, status: int = 200) -> Iterator[str]:
    """Yield the address of a hub with one repository; any other `status` answers all requests."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def _answer(self, *, with_body: bool) -> None:
            path = self.path.split("?")[0]
            revisions = ("main", COMMIT)
            resolved = next(
                (r for n in revisions if path.startswith(r := f"/{repository}/resolve/{n}/")), None
            )
            if status != 200:
                self._send(status, b"", {})
            elif path in (f"/api/models/{repository}/revision/{name}" for name in revisions):
                self._send(200, json.dumps(self._info()).encode(), {})
            elif path.startswith(f"/api/models/{repository}/tree/"):
                self._send(200, json.dumps(self._tree()).encode(), {})
            elif resolved is None:
                self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
            elif (file := folder / path.removeprefix(resolved)).is_file():
                content = file.read_bytes()
                etag = f'"{hashlib.sha1(content).hexdigest()}"'
                headers = {"X-Repo-Commit": COMMIT, "ETag": etag}
                self._send(200, content if with_body else b"", headers, len(content))
            else:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})

        def _info(self) -> dict:
            files = [{"rfilename": file.name} for file in sorted(folder.iterdir())]
            return {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": files}

        def _tree(self) -> list[dict]:
            return [
                {
                    "type": "file",
                    "path": file.name,
                    "size": file.stat().st_size,
                    "oid": hashlib.sha1(file.read_bytes()).hexdigest(),
                }
                for file in sorted(folder.iterdir())
            ]

        def _send(
            self, code: int, body: bytes, headers: dict[str, str], length: int | None = None
        ) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def serve_bytes(answer: bytes) -> Iterator[str]:
    """Yield the host and port of a program that answers each request with the same bytes.

    A HEAD request gets the bytes up to the first empty line.
    """

    def serve() -> None:
        while True:
            try:
                connection, _ = opened.accept()
            except OSError:  # the socket is closed
                return
            with connection, suppress(ConnectionError):
                request = b""
                # A connection that is closed with unread bytes is reset, and the answer is lost.
                while b"\r\n\r\n" not in request and (part := connection.recv(65536)):
                    request += part
                header, end, _ = answer.partition(b"\r\n\r\n")
                connection.sendall(header + end if request.startswith(b"HEAD") else answer)

    with socket.create_server(("127.0.0.1", 0)) as opened:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{opened.getsockname()[1]}"
        finally:
            opened.shutdown(socket.SHUT_RDWR)  # wakes the thread
    thread.join()
