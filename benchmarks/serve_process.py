"""`fastvlm-onnx serve` in a process of its own, for measurements and the soak."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

STARTED = re.compile(r"listening on ([^\s\"]+)")


@dataclass(frozen=True)
class ServeProcess:
    """A server that has loaded its model.

    Attributes:
        url: its address, without a slash at the end.
        process: the child.
        log: the file with its stderr.
    """

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def rss_bytes(self) -> int:
        size: int = psutil.Process(self.process.pid).memory_info().rss
        return size

    def stop(self) -> int:
        """End it by SIGTERM; the exit code."""
        self.process.terminate()
        return self.process.wait(120)


@contextmanager
def serve_process(log: Path, *arguments: object) -> Iterator[ServeProcess]:
    """Start the server on a free port; kill it at the end if it still runs.

    Args:
        log: file for its stderr.
        arguments: further words of the command line.
    """
    command = [sys.executable, "-m", "fastvlm_onnx", "serve", "--port", "0"]
    with (
        log.open("wb") as stderr,
        subprocess.Popen([*command, *map(str, arguments)], stderr=stderr) as process,
    ):
        try:
            yield ServeProcess(_wait_until_ready(process, log), process, log)
        finally:
            process.kill()


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    while process.poll() is None:
        found = STARTED.search(log.read_text("utf-8"))
        if found and httpx.get(f"{found[1]}/health", timeout=600).status_code == 200:
            return found[1]
        time.sleep(0.05)
    raise SystemExit(f"the server ended with {process.returncode}: {log.read_text('utf-8')}")
