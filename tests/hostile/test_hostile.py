"""A fixed set of bad inputs, and the judge that decides about them."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile.case import Command, Outcome
from tests.hostile.judging import problems

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's fork and limits")

ROOT = Path(__file__).resolve().parents[2]
REFUSED = Outcome(2, b"", b"error: absent.png: no such picture.\n")


def test_a_thousand_bad_inputs_end_in_one_line_each() -> None:
    command = [sys.executable, "-m", "tests.hostile", "--cases", "1000", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| all | 1,000 |" in done.stdout


def test_a_refusal_in_one_line_is_right(tmp_path: Path) -> None:
    assert problems(Command([]), REFUSED, tmp_path) == []


def test_a_refusal_after_stats_of_a_chat_is_right(tmp_path: Path) -> None:
    refused = Outcome(2, b"", b"0 turns; no answer is complete yet\nerror: a picture is needed.\n")
    assert problems(Command([]), refused, tmp_path) == []


@pytest.mark.parametrize(
    ("outcome", "problem"),
    [
        (Outcome(1, b"", b"error: a fault\n"), "exit code 1"),
        (Outcome(-11, b"", b""), "killed by SIGSEGV"),
        (Outcome(-9, b"", b"", is_late=True), "hang"),
        (Outcome(2, b"", b"Traceback (most recent call last):\n"), "traceback"),
        (Outcome(2, b"", b"error: a\nerror: b\n"), "several lines"),
        (Outcome(2, b"", b""), "no error on stderr"),
        (Outcome(2, b"", b"error: " + b"x" * 400), "a line over 400 characters"),
        (Outcome(2, b"", b"error: \x1b[31m\n"), "control characters"),
        (Outcome(2, b"", b"[E:onnxruntime:, a.cc:1] b\n"), "another program's message"),
    ],
)
def test_the_judge_finds(outcome: Outcome, problem: str, tmp_path: Path) -> None:
    assert problem in problems(Command([]), outcome, tmp_path)


def test_the_judge_finds_files_that_were_left(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp/fastvlm-onnx-1").mkdir()
    found = problems(Command([]), REFUSED, tmp_path)
    assert found == ["left in the temporary folder: fastvlm-onnx-1"]


def test_the_judge_finds_half_a_package(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/decoder.onnx").touch()
    command = Command([], destination=tmp_path / "out")
    assert "half a result" in problems(command, REFUSED, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--kills", "10"), ("--soak", "2000")])
def test_kills_and_a_soak_leave_nothing(options: tuple[str, str]) -> None:
    command = [sys.executable, "-m", "tests.hostile", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
