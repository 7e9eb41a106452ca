"""The measurement of one way, in its own process. Every way runs the same steps and clock."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from peers.job import STEPS, Job

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Prompt:
    """The prompt that every way answers.

    Attributes:
        pixel_values: float32 [1, 3, S, S].
        before_image: token ids before the image.
        after_image: token ids after the image.
        token_ids: one token id for each position of the prompt, for a way that takes only ids.
    """

    pixel_values: FloatArray
    before_image: list[int]
    after_image: list[int]
    token_ids: list[int]


class Model(Protocol):
    """A loaded way.

    Attributes:
        takes_ids: the language model gets `Prompt.token_ids`, and no rows of the image.
    """

    takes_ids: bool

    def encode_image(self, pixel_values: FloatArray) -> Any:
        """Run the vision encoder and the projector."""

    def prefill(self, prompt: Prompt, image_features: Any) -> int:
        """Run the prompt in an empty cache, and return the first token."""

    def decode_one_token(self, token_id: int) -> int:
        """Run one token, and return the next token."""

    def first_logits(self) -> FloatArray:
        """Return the logits of the latest prefill, float32 [vocab_size]."""


def measure(load: Callable[[Job], Model], files: Sequence[Path], job: Job) -> dict[str, Any]:
    """Load, answer once to warm up, then answer `job.repeats` times.

    Args:
        load: opens the way for a job.
        files: the files that loading reads.
        job: the way and its conditions.

    Returns:
        load: seconds. vision, prefill, first_token, decode: lists of seconds, one item for each
        answer; decode is the median of an answer's tokens. peak_rss_bytes, size_bytes: bytes.
        cosine_image, cosine_logits: cosine with PyTorch's image_features and first logits.
    """
    with np.load(job.prompt) as arrays:
        prompt = Prompt(
            arrays["pixel_values"],
            *(arrays[name].tolist() for name in ("before_image", "after_image", "token_ids")),
        )
    _bring_into_cache(files)
    began = time.perf_counter()
    model = load(job)
    figures: dict[str, Any] = {"load": time.perf_counter() - began}
    times: dict[str, list[float]] = {
        name: [] for name in ("vision", "prefill", "first_token", "decode")
    }
    for repeat in range(1 + job.repeats):
        began = time.perf_counter()
        image_features = model.encode_image(prompt.pixel_values)
        encoded = time.perf_counter()
        token_id = model.prefill(prompt, image_features)
        first = time.perf_counter()
        steps = []
        for _ in range(STEPS):
            step_began = time.perf_counter()
            token_id = model.decode_one_token(token_id)
            steps.append(time.perf_counter() - step_began)
        if repeat > 0:
            times["vision"].append(encoded - began)
            times["prefill"].append(first - encoded)
            times["first_token"].append(first - began)
            times["decode"].append(float(np.median(steps)))
    peak_rss_bytes = _peak_rss_bytes()
    # After the memory is read, since all logits need more than a greedy answer does.
    model.prefill(prompt, image_features)
    found = {"image": np.array(image_features), "logits": model.first_logits()}
    with np.load(job.prompt) as arrays:
        expected = {
            "image": arrays["image_features"],
            "logits": arrays["logits_of_ids" if model.takes_ids else "logits_of_image"],
        }
    return (
        figures
        | times
        | {
            "peak_rss_bytes": peak_rss_bytes,
            "size_bytes": sum(file.stat().st_size for file in files),
            **{f"cosine_{name}": cosine(found[name], expected[name]) for name in found},
        }
    )


def _bring_into_cache(files: Sequence[Path]) -> None:
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def cosine(a: FloatArray, b: FloatArray) -> float:
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def _peak_rss_bytes() -> int:
    """Peak memory of this process. getrusage would include the parent's memory before exec."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
