"""A real server in a thread of the tests' process, on a free port, with the built-in model."""

import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai

from fastvlm_onnx import FastVLM
from fastvlm_onnx.runtime.serving.scheduler import Scheduler
from fastvlm_onnx.server.running import DrainingServer, listen
from fastvlm_onnx.server.service import Service
from fastvlm_onnx.server.settings import Settings

SECONDS = 60.0


@dataclass(frozen=True)
class LiveServer:
    """A server that listens.

    Attributes:
        uvicorn: the server.
        url: its address, without a slash at the end.
        scheduler: the scheduler of its model.
    """

    uvicorn: DrainingServer
    url: str

    @property
    def scheduler(self) -> Scheduler:
        service = self.uvicorn.state.service
        assert service is not None
        return service.scheduler

    def is_ready(self) -> bool:
        """Whether the model is open."""
        assert self.uvicorn.state.failure is None
        return self.uvicorn.state.service is not None

    def openai(self, **options: Any) -> openai.OpenAI:
        """OpenAI's client, which repeats no request by itself."""
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=SECONDS, **options
        )

    def get(self, path: str, **more: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=SECONDS, **more)

    def post(self, path: str, **more: Any) -> httpx.Response:
        return httpx.post(self.url + path, timeout=SECONDS, **more)

    def ask(self, content: Any, **more: Any) -> httpx.Response:
        """Ask one question; `content` is a text or a list of parts."""
        messages = [{"role": "user", "content": content}]
        return self.post("/v1/chat/completions", json={"messages": messages, **more})


def wait_until(is_done: Callable[[], bool], seconds: float = SECONDS) -> None:
    """Wait for a state that comes by itself."""
    deadline = time.monotonic() + seconds
    while not is_done():
        assert time.monotonic() < deadline, "the state did not come"
        time.sleep(0.005)


@contextmanager
def live_server(open_service: Callable[[], Service], **settings: Any) -> Iterator[LiveServer]:
    """A server that listens while the block runs; it may still be loading."""
    settings.setdefault("grace_seconds", 5.0)
    uvicorn = DrainingServer(Settings(port=0, **settings), open_service)
    with listen(uvicorn.state.settings) as opened:
        thread = threading.Thread(target=uvicorn.run, kwargs={"sockets": [opened]})
        thread.start()
        try:
            wait_until(lambda: uvicorn.started or not thread.is_alive())
            yield LiveServer(uvicorn, f"http://127.0.0.1:{opened.getsockname()[1]}")
        finally:
            uvicorn.stop()
            thread.join(SECONDS)
            assert not thread.is_alive()


@contextmanager
def begun_answer(server: LiveServer, **options: Any) -> Iterator[socket.socket]:
    """A question for 2000 tokens that the server took; its client leaves when the block ends."""
    body = {
        "messages": [{"role": "user", "content": "Describe the image."}],
        "stream": True,
        "max_tokens": 2000,
        "ignore_eos": True,
    }
    content = json.dumps(body | options).encode()
    host, port = server.url.removeprefix("http://").split(":")
    before = server.uvicorn.state.admission.answers
    with socket.create_connection((host, int(port)), SECONDS) as client:
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Length: %d\r\n\r\n" % len(content) + content
        )
        wait_until(lambda: server.uvicorn.state.admission.answers > before)
        yield client


def service_of(model: FastVLM, **limits: Any) -> Service:
    return Service(model, Scheduler(model, **limits), "demo")


def data_uri(path: Path) -> str:
    kind = "jpeg" if path.suffix == ".jpg" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def image_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}
