"""`fastvlm-onnx serve` as a shell runs it: start, key, TLS, log, stop."""

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from command_line import refusal

from fastvlm_onnx.cli import main

STARTED = re.compile(r"listening on ([^\s\"]+)")
QUESTION = {"messages": [{"role": "user", "content": "Describe the image."}]}


class ServeProcess:
    """A running `fastvlm-onnx serve`.

    Attributes:
        process: the child.
        url: the address that its log names.
        log: the lines of its stderr so far.
    """

    def __init__(self, *arguments: object, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fastvlm_onnx", "serve", "--port", "0", *map(str, arguments)],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self.log: list[str] = []
        self.url = ""
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.log.append(line.rstrip())
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, pattern: str) -> str:
        """The first line of the log that has the pattern."""

        def found() -> str | None:
            return next((line for line in self.log if re.search(pattern, line)), None)

        with self._changed:
            arrived = self._changed.wait_for(
                lambda: found() is not None or self.process.poll() is not None, 120
            )
        line = found()
        assert arrived, self.log
        assert line is not None, self.log
        return line

    def wait(self) -> int:
        """The exit code."""
        code = self.process.wait(120)
        self._reader.join()
        return code


@contextmanager
def serve_process(*arguments: object, **environment: str) -> Iterator[ServeProcess]:
    """A server that has loaded its model."""
    child = ServeProcess(*arguments, **environment)
    try:
        found = STARTED.search(child.wait_for(STARTED.pattern))
        assert found is not None
        child.url = found[1].rstrip('"')
        child.wait_for("is ready")
        yield child
    finally:
        child.process.kill()
        child.wait()
        for pipe in (child.process.stdout, child.process.stderr):
            assert pipe is not None
            pipe.close()


def test_sigterm_ends_running_answers_and_exits_with_0(package: Path) -> None:
    with serve_process("--model", package, "--grace", 60) as child:
        body = QUESTION | {"stream": True, "max_tokens": 1500, "ignore_eos": True}
        with httpx.stream(
            "POST", f"{child.url}/v1/chat/completions", json=body, timeout=120
        ) as answer:
            pieces = answer.iter_text()
            text = next(pieces)
            child.process.send_signal(signal.SIGTERM)
            text += "".join(pieces)
        assert text.endswith("data: [DONE]\n\n")
        assert '"finish_reason":"length"' in text
        assert child.wait() == 0
        assert "stopping" in child.log[-2]
        assert not any("Traceback" in line for line in child.log)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{child.url}/health")


def test_each_request_is_one_line_of_json_without_the_prompt(package: Path) -> None:
    with serve_process("--model", package, "--log-json") as child:
        httpx.post(f"{child.url}/v1/chat/completions", json=QUESTION | {"max_tokens": 2})
        entry = json.loads(child.wait_for("chat/completions"))
        assert entry["status"] == 200
        assert entry["completion_tokens"] == 2
        assert all(json.loads(line) for line in child.log)
        assert "Describe" not in "".join(child.log)


def test_the_key_comes_from_the_environment_or_a_file(package: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("of-the-file\n")
    from_file = ("--api-key-file", tmp_path / "key")
    for arguments, key in (((), "of-the-environment"), (from_file, "of-the-file")):
        with serve_process(
            "--model", package, *arguments, FASTVLM_ONNX_API_KEY="of-the-environment"
        ) as child:
            models = f"{child.url}/v1/models"
            assert httpx.get(models).status_code == 401
            headers = {"Authorization": f"Bearer {key}"}
            assert httpx.get(models, headers=headers).status_code == 200
            assert key not in "".join(child.log)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for localhost, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the test's certificate, is not installed")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost".split(),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-out", str(certificate), "-keyout", str(key)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


def test_https_with_a_certificate(package: Path, certificate: tuple[Path, Path]) -> None:
    file, key = certificate
    with serve_process("--model", package, "--ssl-certfile", file, "--ssl-keyfile", key) as child:
        assert child.url.startswith("https://")
        trusting = ssl.create_default_context(cafile=str(file))
        assert httpx.get(f"{child.url}/health", verify=trusting).json() == {"status": "ok"}


def test_the_default_model_is_named_on_stderr(package: Path) -> None:
    with serve_process(FASTVLM_ONNX_MODEL=str(package)) as child:
        assert child.log[0].startswith(f"model: {package} (")


# --- refusals ------------------------------------------------------------------------------------

Refuse = Callable[..., str]


@pytest.fixture
def refuse(package: Path, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Run the command with options that it refuses, in this process; return its one line."""

    def run_refused(*options: object) -> str:
        with pytest.raises(SystemExit) as caught:
            main(["serve", "--model", str(package), *map(str, options)])
        assert caught.value.code == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        (line,) = printed.err.splitlines()
        return line

    return run_refused


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5"])
def test_other_machines_are_not_answered_without_a_key(refuse: Refuse, host: str) -> None:
    line = refuse("--host", host)
    assert "there is no key" in line
    assert "--no-key" in line


def test_no_key_and_a_key_exclude_each_other(
    refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTVLM_ONNX_API_KEY", "x")
    assert "--no-key comes with a key" in refuse("--no-key")


def test_options_that_cannot_be_used_are_refused(refuse: Refuse, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("\n")
    missing = tmp_path / "missing"
    for options, reason in (
        (("--api-key-file", empty), "is empty"),
        (("--api-key-file", missing), "cannot be read"),
        (("--media-root", missing), "does not exist"),
        (("--ssl-certfile", empty), "go together"),
        (("--ssl-certfile", missing, "--ssl-keyfile", empty), "does not exist"),
        (("--ssl-certfile", empty, "--ssl-keyfile", empty), "no certificate with its key"),
        (("--port", 99_999), "99999 is not in the range 0<=x<=65535"),
        (("--max-running", 0), "--max-running"),
        (("--max-body-mb", 0), "--max-body-mb"),
        (("--grace", "nan"), "--grace"),
        (("--max-seconds", "inf"), "inf is not in the range"),
        (("--prefix-cache-mb", "nan"), "nan is not a number; give a number"),
        (("--model", tmp_path), "fastvlm.json"),
    ):
        assert reason in refuse(*options), options


@pytest.mark.skipif(os.name != "posix", reason="FIFOs are files of POSIX systems")
def test_a_fifo_without_a_writer_is_refused_at_once(refuse: Refuse, tmp_path: Path) -> None:
    os.mkfifo(fifo := tmp_path / "fifo")
    assert f"{fifo}: is a FIFO, expected a regular file" in refuse("--api-key-file", fifo)


def test_a_port_that_is_taken_is_refused(refuse: Refuse) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} cannot be listened on" in refuse("--port", port)


def test_without_the_extra_serve_says_how_to_install_it(package: Path, tmp_path: Path) -> None:
    (tmp_path / "starlette.py").write_text("raise ImportError(name='starlette')\n")
    line = refusal("serve", "--model", package, PYTHONPATH=str(tmp_path))
    assert 'pip install "fastvlm-onnx[serve]"' in line
