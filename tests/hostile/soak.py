"""Many answers in one process: memory, open files and threads must stay level."""

import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import fastvlm_onnx
from fastvlm_onnx import FastVLM, InputError
from tests.hostile.kills import PICTURES

PROMPT = "Describe the image."
TENTHS = 10
SAMPLES = 20  # of memory in each tenth
LARGEST_GROWTH = 0.01


@dataclass(frozen=True)
class Soak:
    """Figures of a soak, by tenths of its answers.

    Attributes:
        megabytes: mean resident memory.
        files: open files at the end of each tenth.
        threads: threads at the end of each tenth.
    """

    megabytes: list[float]
    files: list[int]
    threads: list[int]

    @property
    def is_level(self) -> bool:
        """The last tenth is within 1 % of the second, and files and threads are as many."""
        return (
            abs(self.megabytes[-1] / self.megabytes[1] - 1) <= LARGEST_GROWTH
            and self.files[-1] <= self.files[1]
            and self.threads[-1] <= self.threads[1]
        )

    def table(self) -> str:
        """A Markdown table by tenths."""
        rows = ["| tenth | resident memory | open files | threads |", "|---:|---:|---:|---:|"]
        rows += [
            f"| {number} | {memory:.1f} MB | {files} | {threads} |"
            for number, (memory, files, threads) in enumerate(
                zip(self.megabytes, self.files, self.threads, strict=True), 1
            )
        ]
        return "\n".join(rows)


def soak(package: Path, answers: int) -> Soak:
    """Answer in every way in turn, with refusals and answers that are left between them."""
    found = Soak([], [], [])
    with fastvlm_onnx.load(package) as model:
        each = max(answers // TENTHS, SAMPLES)
        for tenth in range(TENTHS):
            memory = []
            for number in range(each):
                _answer(model, tenth * each + number)
                if number % (each // SAMPLES) == 0:
                    memory.append(_resident_megabytes())
            found.megabytes.append(mean(memory))
            found.files.append(len(os.listdir("/proc/self/fd")))
            found.threads.append(_threads())
    assert threading.active_count() == 1
    return found


def _answer(model: FastVLM, number: int) -> None:
    picture = PICTURES[number % len(PICTURES)]
    kind = number % 5
    if kind == 0:
        model.generate(picture, PROMPT, max_new_tokens=2)
    elif kind == 1:
        pieces = model.stream(picture, PROMPT, max_new_tokens=8)
        next(pieces)
        pieces.close()
    elif kind == 2:
        with model.chat() as chat:
            chat.ask(PROMPT, picture, max_new_tokens=2)
            chat.ask("And now?", max_new_tokens=2)
    elif kind == 3:
        model.generate_batch([picture, picture], PROMPT, max_new_tokens=2)
    else:
        with suppress(InputError):
            model.generate("absent.png", PROMPT)
        model.generate(None, f"Question {number}", max_new_tokens=2, temperature=1.0)


def _resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text("utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))
