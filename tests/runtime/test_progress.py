"""The progress bar: shown on a terminal's stderr, and nowhere else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import run


def caption_command(picture: Path, package: Path) -> list[str]:
    options = ["--model", str(package), "--max-new-tokens", "2"]
    return ["caption", str(picture), *options]


def test_a_terminal_shows_stage_share_rate_and_remaining_time(picture: Path, package: Path) -> None:
    termios = pytest.importorskip("termios", reason="this system has no pseudo-terminals")
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    command = [sys.executable, "-m", "fastvlm_onnx", *caption_command(picture, package)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, check=True)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # Linux's way to say that the terminal was closed
        pass
    os.close(ours)
    *bars, summary = filter(str.strip, shown.decode().split("\r"))
    last = bars[-1]
    for words in ("caption", picture.name, "100%", "1/1", "00:00", "pictures"):
        assert words in last
    assert summary.strip().startswith("pictures: 1 in ")
    assert b"100%" not in done.stdout


def test_only_a_summary_is_shown_where_stderr_is_not_a_terminal(
    picture: Path, package: Path
) -> None:
    (line,) = run(*caption_command(picture, package)).stderr.splitlines()
    assert line.startswith("pictures: 1 in ")
