"""Thousands of requests of all kinds to one server: none is lost, and memory stays level.

    python benchmarks/soak.py DIR --requests 10000

A tenth of the requests is wrong, and a tenth of the clients hangs up. The server keeps small
caches, which the first requests fill.
"""

import argparse
import asyncio
import base64
import io
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from PIL import Image
from serve_process import ServeProcess, serve_process

import fastvlm_onnx

PICTURES = sorted((Path(fastvlm_onnx.__file__).parent / "demo/pictures").glob("*.[jp][pn]g"))
CLIENTS = 12
CACHES = ("--prefix-cache-mb", 4, "--image-cache-mb", 1)
# All clients have one address. A machine that pauses for minutes breaks no limit of time.
LIMITS = ("--max-per-client", 64, "--body-seconds", 3600, "--max-seconds", 3600)


@dataclass
class Soak:
    """A run's results.

    Attributes:
        kinds: number of requests by kind.
        wrong: responses other than the expected, in words.
        rss_bytes: the server's memory after each thousandth of the requests.
        tracebacks: tracebacks in the server's log.
        exit_code: the server's, after SIGTERM.
        left: answers that the server still had at the end.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    rss_bytes: list[int] = field(default_factory=list)
    seconds: float = 0.0
    tracebacks: int = 0
    exit_code: int = -1
    left: float = -1.0

    @property
    def tenths(self) -> list[float]:
        """Median memory of each tenth of the run, in megabytes."""
        size = len(self.rss_bytes) // 10
        return [median(self.rss_bytes[i * size : (i + 1) * size]) / 1e6 for i in range(10)]

    @property
    def growth(self) -> float:
        """Memory of the last tenth over that of the fifth, less 1.

        Until then the caches and the allocator's arenas fill.
        """
        return self.tenths[-1] / self.tenths[4] - 1


class Visitor:
    """Clients that ask at random."""

    def __init__(self, http: httpx.AsyncClient, seed: int) -> None:
        self._http, self._random = http, random.Random(seed)
        self._pictures = [path.read_bytes() for path in PICTURES]

    def request(self) -> tuple[str, Callable[[], Coroutine[Any, Any, str | None]]]:
        """A kind of request, and the coroutine function that makes it.

        The coroutine's result is None, or the fault of the response in words.
        """
        dice = self._random.random()
        if dice < 0.1:
            return self._random.choice(
                [
                    ("wrong: field", self._wrong_field),
                    ("wrong: image", self._wrong_image),
                    ("wrong: JSON", self._wrong_json),
                    ("wrong: see id", self._wrong_id),
                    ("wrong: path", self._wrong_path),
                ]
            )
        if dice < 0.2:
            return "hang up", self._hang_up
        return self._random.choice(
            [
                ("text", self._text),
                ("image", self._image),
                ("image, streamed", self._stream),
                ("see and ask", self._see),
                ("two answers", self._two_answers),
                ("two turns", self._turns),
                ("models and metrics", self._models),
            ]
        )

    # --- right requests ----------------------------------------------------------------------

    async def _text(self) -> str | None:
        return await self._expect(200, self._body("Describe the image."))

    async def _image(self) -> str | None:
        return await self._expect(200, self._body(self._question(), temperature=1))

    async def _two_answers(self) -> str | None:
        return await self._expect(200, self._body(self._question(), n=2, logprobs=True))

    async def _turns(self) -> str | None:
        body = self._body(self._question())
        body["messages"] += [
            {"role": "assistant", "content": f"Number {self._random.random()}."},
            {"role": "user", "content": "What else?"},
        ]
        return await self._expect(200, body)

    async def _stream(self) -> str | None:
        body = self._body(self._question(), stream=True)
        answer = await self._http.post("/v1/chat/completions", json=body)
        if answer.status_code != 200 or not answer.text.endswith("data: [DONE]\n\n"):
            return f"a stream ended with {answer.status_code} {answer.text[-200:]}"
        return None

    async def _see(self) -> str | None:
        headers = {"Content-Type": "image/png"}
        seen = await self._http.post("/v1/see", content=self._new_picture(), headers=headers)
        if seen.status_code != 200:
            return f"see gave {seen.status_code} {seen.text[:200]}"
        part = {"type": "image_url", "image_url": {"url": seen.json()["id"]}}
        return await self._expect(200, self._body([part, {"type": "text", "text": "What?"}]))

    async def _models(self) -> str | None:
        for path in ("/v1/models", "/health", "/metrics", "/docs"):
            answer = await self._http.get(path)
            if answer.status_code != 200:
                return f"{path} gave {answer.status_code}"
        return None

    # --- wrong ones --------------------------------------------------------------------------

    async def _wrong_field(self) -> str | None:
        return await self._expect(400, self._body("What?", temperature=9))

    async def _wrong_image(self) -> str | None:
        cut = base64.b64encode(self._random.choice(self._pictures)[:900]).decode()
        part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{cut}"}}
        return await self._expect(400, self._body([part, {"type": "text", "text": "What?"}]))

    async def _wrong_json(self) -> str | None:
        answer = await self._http.post("/v1/chat/completions", content=b"{" * 1000)
        return None if answer.status_code == 400 else f"bad JSON gave {answer.status_code}"

    async def _wrong_id(self) -> str | None:
        part = {"type": "image_url", "image_url": {"url": "see:unknown"}}
        return await self._expect(404, self._body([part]))

    async def _wrong_path(self) -> str | None:
        answer = await self._http.get("/v1/nothing")
        return None if answer.status_code == 404 else f"no path gave {answer.status_code}"

    async def _hang_up(self) -> str | None:
        body = self._body(
            self._question(),
            stream=self._random.random() < 0.5,
            max_tokens=1500,
            ignore_eos=True,
        )
        seconds, began = self._random.uniform(0.001, 0.1), time.monotonic()
        try:
            async with asyncio.timeout(seconds):
                await self._http.post("/v1/chat/completions", json=body)
        except TimeoutError:
            return None
        # A client that gets no time on a busy machine may find the whole answer.
        if time.monotonic() - began > 10 * seconds:
            return None
        return "an answer of 1500 tokens ended before its client hung up"

    # --- parts -------------------------------------------------------------------------------

    async def _expect(self, status: int, body: dict[str, Any]) -> str | None:
        answer = await self._http.post("/v1/chat/completions", json=body)
        if answer.status_code != status:
            return f"{answer.status_code} in place of {status}: {answer.text[:200]}"
        return None

    def _body(self, content: Any, **options: Any) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": content}], "max_tokens": 12} | options

    def _question(self) -> list[dict[str, Any]]:
        picture = self._random.choice(self._pictures)
        if self._random.random() < 0.5:
            picture = self._new_picture()
        data = base64.b64encode(picture).decode()
        return [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
            {"type": "text", "text": self._random.choice(["What?", "Describe the image."])},
        ]

    def _new_picture(self) -> bytes:
        color = tuple(self._random.randrange(256) for _ in range(3))
        file = io.BytesIO()
        Image.new("RGB", (64, 64), color).save(file, "PNG")
        return file.getvalue()


async def visit(server: ServeProcess, requests: int) -> Soak:
    """Make the requests from CLIENTS clients."""
    soak, remaining = Soak(), iter(range(requests))
    began = time.monotonic()

    async def client(seed: int) -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=3600) as http:
            visitor = Visitor(http, seed)
            for number in remaining:
                kind, make = visitor.request()
                try:
                    wrong = await make()
                except httpx.HTTPError as error:
                    wrong = f"{kind}: {type(error).__name__} {error}"
                soak.kinds[kind] += 1
                if wrong:
                    soak.wrong.append(f"{kind}: {wrong}")
                if (number + 1) % max(1, requests // 1000) == 0:
                    soak.rss_bytes.append(server.rss_bytes)

    await asyncio.gather(*(client(seed) for seed in range(CLIENTS)))
    soak.seconds = time.monotonic() - began
    return soak


def answers_left(url: str) -> float:
    """Answers that run or wait, once the last clients' leaving has been noticed."""
    left = -1.0
    for _ in range(50):
        text = httpx.get(f"{url}/metrics").text
        left = sum(
            float(line.split()[1])
            for line in text.splitlines()
            if line.startswith("fastvlm_onnx:num_requests_")
        )
        if not left:
            break
        time.sleep(0.1)
    return left


def run(package: Path, requests: int, log: Path) -> Soak:
    """Start a server, make the requests, and stop the server."""
    with serve_process(log, "--model", package, *CACHES, *LIMITS) as server:
        soak = asyncio.run(visit(server, requests))
        soak.left = answers_left(server.url)
        soak.exit_code = server.stop()
    soak.tracebacks = log.read_text("utf-8").count("Traceback")
    return soak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("--requests", type=int, default=10_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        soak = run(given.package, given.requests, Path(folder) / "log")
    for kind, number in sorted(soak.kinds.items()):
        print(f"{number:6} {kind}")
    for wrong in soak.wrong[:20]:
        print(wrong)
    print(
        f"{soak.kinds.total()} requests in {soak.seconds:.0f} s; {len(soak.wrong)} wrong "
        f"responses, {soak.tracebacks} tracebacks, {soak.left:.0f} answers left, exit code "
        f"{soak.exit_code}; memory {soak.growth:+.1%} from the fifth tenth to the last, in MB "
        + " ".join(f"{size:.0f}" for size in soak.tenths)
    )


if __name__ == "__main__":
    main()
