"""Time and memory of one variant on this machine: `python -m fastvlm_onnx.runtime.bench CASE`.

Each case has a process of its own, since load time and peak memory are measured per process.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from fastvlm_onnx.errors import FastVLMError
from fastvlm_onnx.names import DECODER, LM_HEAD_SCREEN, PREFILL, VISION_ENCODER
from fastvlm_onnx.runtime.answering.results import Generation
from fastvlm_onnx.runtime.loading import load
from fastvlm_onnx.runtime.ort.hardware import peak_rss_bytes
from fastvlm_onnx.runtime.ort.providers import import_onnxruntime
from fastvlm_onnx.runtime.ort.session import GraphSession


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        folder: the package.
        providers: as `load` takes them.
        picture: path of the image.
        warmup: answers before the first that counts.
        repeats: answers that count.
        new_tokens: tokens of each answer; end tokens are ignored.
    """

    folder: str
    precision: str
    image_size: int
    threads: int | None
    providers: str
    picture: str
    prompt: str
    warmup: int
    repeats: int
    new_tokens: int


@dataclass(frozen=True)
class BenchSample:
    """Seconds, but for the last two.

    Attributes:
        first_token: from the picture file until the first token is there.
        decode_one_token: the mean of all tokens after the first.
        outside: share of `decode_one_token` that is not spent in ONNX Runtime.
    """

    preprocess: float
    vision: float
    prefill: float
    first_token: float
    decode_one_token: float
    tokens_per_second: float
    outside: float


@dataclass(frozen=True)
class Figures:
    """The figures of a case.

    Attributes:
        load: seconds; the first time, so files may come from the disk.
        new_tokens: of each answer; fewer than asked for where the context ends.
        peak_rss_bytes: of the whole process; None where the system does not say.
        int8_weights: "int8" or "uint8", as the processor needs them; None for a variant without.
    """

    load: float
    prompt_tokens: int
    new_tokens: int
    answers: list[BenchSample]
    peak_rss_bytes: int | None
    int8_weights: str | None

    def median(self, field: str) -> float:
        """The middle one of the answers' figures."""
        return median(getattr(answer, field) for answer in self.answers)

    def least(self, field: str) -> float:
        """The smallest of the answers' figures."""
        return min(getattr(answer, field) for answer in self.answers)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Figures":
        return cls(**fields | {"answers": [BenchSample(**answer) for answer in fields["answers"]]})


def measure(case: Case, progress: Callable[[], None]) -> Figures:
    """Answer again and again, through the loop that every answer takes.

    Args:
        progress: called after each answer.

    Raises:
        FastVLMError: the package, the picture or the prompt cannot be used.
    """
    import_onnxruntime()  # importing it is no part of loading a package
    model = load(
        case.folder,
        precision=case.precision,
        providers=case.providers,
        image_size=case.image_size,
        threads=case.threads,
    )
    runs: list[float] = []
    token_ids: list[int] = []
    for graph in (DECODER, LM_HEAD_SCREEN, PREFILL):
        if isinstance(session := model.sessions.get(graph), GraphSession):
            session.observer = runs.append

    def count(token_id: int) -> None:
        if not token_ids:
            runs.clear()  # the prompt's
        token_ids.append(token_id)

    answers = []
    for number in range(case.warmup + case.repeats):
        token_ids.clear()
        generation = model.generate(
            case.picture,
            case.prompt,
            max_new_tokens=case.new_tokens,
            ignore_eos=True,
            on_token=count,
        )
        if number >= case.warmup:
            answers.append(_sample(generation, runs))
        progress()
    return Figures(
        load=model.load_seconds,
        prompt_tokens=generation.prompt_tokens,
        new_tokens=len(generation.token_ids),
        answers=answers,
        peak_rss_bytes=peak_rss_bytes(),
        int8_weights=model.sessions[VISION_ENCODER].int8_weights,
    )


def _sample(generation: Generation, runs: list[float]) -> BenchSample:
    timings = generation.timings
    steps = len(generation.token_ids) - 1
    return BenchSample(
        preprocess=timings.preprocess,
        vision=timings.vision,
        prefill=timings.prefill,
        first_token=timings.first_token,
        decode_one_token=timings.decode / steps,
        tokens_per_second=timings.tokens_per_second,
        outside=1 - sum(runs) / timings.decode,
    )


def main() -> None:
    """Measure the case given as JSON; a line on stdout after each answer, and one at the end."""

    def say(**line: Any) -> None:
        print(json.dumps(line), flush=True)

    try:
        figures = measure(Case(**json.loads(sys.argv[1])), lambda: say(answered=True))
    except FastVLMError as error:
        say(error=str(error))
    else:
        say(figures=asdict(figures))


if __name__ == "__main__":
    main()
