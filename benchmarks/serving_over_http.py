"""The time that HTTP adds to an answer, and the time that caches and batches of a server save.

    python benchmarks/serving_over_http.py DIR --precision fast

The server runs in a process of its own. Each image is noise of 640 x 480 pixels in a JPEG file; no
two are alike. Answers go on past end tokens. Run it on an idle machine.
"""

import argparse
import base64
import io
import json
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
import onnxruntime
from PIL import Image
from serve_process import serve_process

import fastvlm_onnx
from fastvlm_onnx.runtime.ort.hardware import processor

PROMPT, OTHER_PROMPT = "Describe the image.", "How many shapes do you see?"
CLIENTS = 8
# An image takes a second, and HTTP some milliseconds: their difference needs several of each.
PAIRS = 5


class Images:
    """Images that no cache knows."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)

    def new(self) -> bytes:
        pixels = self._rng.integers(0, 255, (480, 640, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG")
        return file.getvalue()


class Client:
    """Asks the server, and notes when tokens come.

    Attributes:
        scheduled: seconds from the submission of the last answer to its first token, as the server
            counts them.
    """

    def __init__(self, url: str, new_tokens: int) -> None:
        self._url, self._new_tokens = url, new_tokens
        self.scheduled = 0.0
        self._http = httpx.Client(timeout=600)

    def ask(self, image: bytes | str, prompt: str) -> list[float]:
        """Ask one question.

        Args:
            image: a file, or an id of `see`.

        Returns:
            Seconds from the call to each chunk with text, and then to the end.
        """
        began = time.perf_counter()
        url = image
        if isinstance(image, bytes):
            url = "data:image/jpeg;base64," + base64.b64encode(image).decode()
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": prompt},
        ]
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": content}],
            "stream": True,
            "max_tokens": self._new_tokens,
            "ignore_eos": True,
        }
        seconds = []
        with self._http.stream("POST", f"{self._url}/v1/chat/completions", json=body) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    seconds.append(time.perf_counter() - began)
                    chunk = json.loads(line[6:])
                    assert "error" not in chunk, line
                    if "timings" in chunk:
                        self.scheduled = chunk["timings"]["first_token_ms"] / 1e3
        return seconds

    def see(self, image: bytes) -> str:
        headers = {"Content-Type": "image/jpeg"}
        answer = self._http.post(f"{self._url}/v1/see", content=image, headers=headers)
        seen: str = answer.json()["id"]
        return seen

    def ask_at_once(self, images: Sequence[bytes | str], prompt: str) -> list[list[float]]:
        """Ask from a connection of its own for each image."""
        found: list[list[float]] = []
        clients = [Client(self._url, self._new_tokens) for _ in images]
        threads = [
            threading.Thread(target=lambda c=client, i=image: found.append(c.ask(i, prompt)))
            for client, image in zip(clients, images, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found


def measure(model: fastvlm_onnx.FastVLM, client: Client, rounds: int) -> dict[str, float]:
    """Medians of the rounds after the first, in seconds and tokens a second."""
    images = Images()
    found: list[dict[str, float]] = []
    for number in range(rounds + 1):
        pairs = []
        for _ in range(PAIRS):
            alone = model.generate(images.new(), PROMPT, max_new_tokens=1).timings.first_token
            image = images.new()
            pairs.append((alone, client.ask(image, PROMPT)[0], client.scheduled))
        first = median(over_http for _, over_http, _ in pairs)
        repeated = client.ask(image, OTHER_PROMPT)[0]
        after_see = client.ask(client.see(images.new()), PROMPT)[0]
        one = client.ask(image, OTHER_PROMPT)
        eight = client.ask_at_once([image] * CLIENTS, OTHER_PROMPT)
        different = client.ask_at_once([images.new() for _ in range(CLIENTS)], PROMPT)
        found.append(
            {
                "alone": median(in_process for in_process, _, _ in pairs),
                "first": first,
                "overhead": median(over_http - in_process for in_process, over_http, _ in pairs),
                "outside": median(over_http - scheduled for _, over_http, scheduled in pairs),
                "repeated": repeated,
                "after_see": after_see,
                "slowest": max(seconds[0] for seconds in different),
                "one": client._new_tokens / one[-1],
                "eight": CLIENTS * client._new_tokens / max(seconds[-1] for seconds in eight),
            }
        )
        print(number, json.dumps(found[-1]), flush=True)
    return {name: median(one[name] for one in found[1:]) for name in found[0]}


def report(f: dict[str, float]) -> str:
    first = f["first"]
    rows = [
        ("first token of a new image, `model.generate`, ms", f["alone"] * 1e3, ""),
        ("the same over HTTP, ms", first * 1e3, f"{f['overhead'] * 1e3:+.1f} ms"),
        ("of it before and after the scheduler's part, ms", f["outside"] * 1e3, ""),
        (
            "second question about it, ms",
            f["repeated"] * 1e3,
            f"1/{first / f['repeated']:.1f}",
        ),
        ("question after `see`, ms", f["after_see"] * 1e3, f"1/{first / f['after_see']:.1f}"),
        (
            "slowest first token of 8 new images at once, ms",
            f["slowest"] * 1e3,
            f"{f['slowest'] / first:.1f}",
        ),
        ("tokens a second, one client", f["one"], ""),
        ("tokens a second, 8 clients at once", f["eight"], f"{f['eight'] / f['one']:.1f}"),
    ]
    lines = ["| figure | value | ratio |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {value:,.1f} | {r} |" for name, value, r in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--precision", default="fast")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    options: list[object] = ["--model", given.folder, "--precision", given.precision]
    if given.image_size is not None:
        options += ["--image-size", given.image_size]
    with (
        tempfile.TemporaryDirectory() as folder,
        fastvlm_onnx.load(
            given.folder, precision=given.precision, image_size=given.image_size
        ) as model,
        serve_process(Path(folder) / "log", *options) as server,
    ):
        figures = measure(model, Client(server.url, given.new_tokens), given.rounds)
        print(
            f"{processor()}, onnxruntime {onnxruntime.__version__}, {given.precision}, "
            f"{model.image_size} pixels, answers of {given.new_tokens} tokens, medians of "
            f"{given.rounds} rounds.\n\n{report(figures)}"
        )


if __name__ == "__main__":
    main()
