"""First tokens and tokens a second of a scheduler, each as a ratio within one process.

    python benchmarks/serving.py DIR --precision fast

Every answer has --new-tokens tokens, since end tokens are ignored. Images are noise of 640 x 480
pixels; no two are alike. Run it on an idle machine.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
from numpy.typing import NDArray

import fastvlm_onnx
from fastvlm_onnx import FastVLM, RunningAnswer, Scheduler
from fastvlm_onnx.runtime.ort.hardware import processor

PROMPT = "Describe the image."
OTHER_PROMPT = "How many shapes do you see?"
CALLERS = 8


@dataclass(frozen=True)
class Round:
    """One round of questions: seconds, and tokens a second.

    Attributes:
        first_token: of a lone question about a new image; the mean of one before and one after.
        repeated: first token of a second question about a known image.
        after_see: first token of a question about an image that was seen before.
        slowest_of_eight: the latest first token of questions about eight new images at once.
        longest_gap: the longest time between two tokens of the answers that were running then.
        one: tokens a second of one answer about a seen image, from the question to the last token;
            the mean of one before and one after.
        eight: tokens a second of eight answers asked at once about that image, likewise.
    """

    first_token: float
    repeated: float
    after_see: float
    slowest_of_eight: float
    longest_gap: float
    one: float
    eight: float


class Asker:
    """Asks a scheduler as its callers do, and notes when tokens come."""

    def __init__(self, model: FastVLM, new_tokens: int) -> None:
        self._model, self._new_tokens = model, new_tokens
        self._rng = np.random.default_rng(0)

    def new_image(self) -> NDArray[np.uint8]:
        return self._rng.integers(0, 255, (480, 640, 3), np.uint8)

    def ask(self, scheduler: Scheduler, image: object, prompt: str) -> tuple[float, list[float]]:
        """Ask one question; return the seconds to the first token and the moments of all."""
        moments: list[float] = []
        running: RunningAnswer = scheduler.ask(
            image,  # type: ignore[arg-type]
            prompt,
            max_new_tokens=self._new_tokens,
            ignore_eos=True,
            on_token=lambda _: moments.append(time.perf_counter()),
        )
        return running.result().timings.first_token, moments

    def ask_at_once(
        self, scheduler: Scheduler, images: list[object], prompt: str
    ) -> list[tuple[float, list[float]]]:
        """Ask from as many threads as there are images."""
        found: list[tuple[float, list[float]]] = []

        def ask(image: object) -> None:
            found.append(self.ask(scheduler, image, prompt))

        threads = [threading.Thread(target=ask, args=(image,)) for image in images]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    def measure(self) -> Round:
        with Scheduler(self._model, max_rows=CALLERS) as scheduler:
            known = self.new_image()
            first, _ = self.ask(scheduler, known, PROMPT)
            repeated, _ = self.ask(scheduler, known, OTHER_PROMPT)
            seen = scheduler.see(self.new_image())
            after_see, _ = self.ask(scheduler, scheduler.seen(seen.id or ""), PROMPT)
            one = self._rate(scheduler, [seen])
            eight = self._rate(scheduler, [seen] * CALLERS)
            one_again = self._rate(scheduler, [seen])
            new = [self.new_image() for _ in range(CALLERS)]
            at_once = self.ask_at_once(scheduler, new, PROMPT)
            first_again, _ = self.ask(scheduler, self.new_image(), PROMPT)
        return Round(
            first_token=(first + first_again) / 2,
            repeated=repeated,
            after_see=after_see,
            slowest_of_eight=max(seconds for seconds, _ in at_once),
            longest_gap=max(float(np.diff(moments).max()) for _, moments in at_once),
            one=(one + one_again) / 2,
            eight=eight,
        )

    def _rate(self, scheduler: Scheduler, images: list[object]) -> float:
        began = time.perf_counter()
        answers = self.ask_at_once(scheduler, images, OTHER_PROMPT)
        moments = [moment for _, times in answers for moment in times]
        return len(moments) / (max(moments) - began)


def report(rounds: list[Round]) -> str:
    """Medians of the figures, and of their ratios within each round."""

    def row(name: str, figure: str, scale: float, ratio: Callable[[Round], float] | None) -> str:
        value = median(asdict(one)[figure] for one in rounds) * scale
        shown = "" if ratio is None else f"{median(map(ratio, rounds)):.1f}"
        return f"| {name} | {value:,.0f} | {shown} |"

    return "\n".join(
        [
            "| figure | median | ratio |",
            "|---|---|---|",
            row("first token about a new image, ms", "first_token", 1e3, None),
            row(
                "first token of a second question about it, ms; a new image's to it",
                "repeated",
                1e3,
                lambda r: r.first_token / r.repeated,
            ),
            row(
                "first token after `see`, ms; a new image's to it",
                "after_see",
                1e3,
                lambda r: r.first_token / r.after_see,
            ),
            row(
                "slowest first token of eight new images at once, ms; to a lone one's",
                "slowest_of_eight",
                1e3,
                lambda r: r.slowest_of_eight / r.first_token,
            ),
            row("longest gap between two tokens meanwhile, ms", "longest_gap", 1e3, None),
            row("tokens a second of one answer", "one", 1, None),
            row(
                "tokens a second of eight answers at once; to one answer's",
                "eight",
                1,
                lambda r: r.eight / r.one,
            ),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path, help="an exported folder")
    parser.add_argument("--precision", default="fast")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="after one that does not count")
    args = parser.parse_args()
    model = fastvlm_onnx.load(
        args.package, precision=args.precision, image_size=args.image_size, providers="cpu"
    )
    asker = Asker(model, args.new_tokens)
    rounds = []
    for _ in range(args.rounds + 1):
        rounds.append(asker.measure())
        print(json.dumps(asdict(rounds[-1])), file=sys.stderr, flush=True)
    print(
        f"{processor()}, {os.cpu_count()} cores, ONNX Runtime {onnxruntime.__version__}; "
        f"{model.manifest.source.name} {model.precision}, {model.image_size} pixels, "
        f"{args.new_tokens} tokens in each answer, medians of {args.rounds}.\n"
    )
    print(report(rounds[1:]))


if __name__ == "__main__":
    main()
