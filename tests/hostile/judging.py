"""Judge the outcome of a case: a right exit code, at most one line, and nothing left behind."""

import re
import signal
import unicodedata
from pathlib import Path
from typing import Final

from tests.hostile.case import Command, Outcome

LONGEST_MESSAGE: Final = 400
# Lines on stderr that are no errors: progress, warnings of the library, and a chat's /stats.
_NOTICES: Final = re.compile(r"(model|warning|next): |wrote |\d+ turns[;,] ")
# The file without which a package, or a folder for transformers.js, is half.
_RESULTS: Final = ("fastvlm.json", "config.json")
_FOREIGN: Final = re.compile(r"\[[EWIF]:onnxruntime|\.cc:\d+|\.cpp:\d+|\.rs:\d+|panicked at")


def problems(command: Command, outcome: Outcome, room: Path) -> list[str]:
    """Return the problems of an outcome, by short names that a table can count.

    Args:
        command: the command that ran.
        outcome: how it ended.
        room: the case's folder, in which `tmp` was the folder for temporary files.
    """
    if outcome.is_late:
        return ["hang"]
    # A limit on files holds for the file that is stderr here.
    is_silent = 2 in {*command.closed, *command.full} or command.limits.file_bytes == 0
    return [
        *_of_code(command, outcome),
        *_of_stderr(outcome, is_silent=is_silent),
        *_leftovers(command, outcome, room),
    ]


def _of_code(command: Command, outcome: Outcome) -> list[str]:
    code = outcome.code
    right = {*command.codes}
    if command.signal is not None:
        number = int(command.signal[0])
        # A process that was still starting ends by the signal itself.
        right |= {128 + number, -number}
    if code in right:
        return []
    if code < 0:
        return [f"killed by {signal.Signals(-code).name}"]
    return [f"exit code {code}"]


def _of_stderr(outcome: Outcome, *, is_silent: bool) -> list[str]:
    found = []
    text = outcome.stderr.decode("utf-8", "backslashreplace")
    if "Traceback (most recent call last)" in text:
        found.append("traceback")
    if _FOREIGN.search(text):
        found.append("another program's message")
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    if any(unicodedata.category(letter) == "Cc" for line in lines for letter in line):
        found.append("control characters")
    errors = [line for line in lines if not _NOTICES.match(line)]
    if any(len(line) > LONGEST_MESSAGE for line in lines):
        found.append("a line over 400 characters")
    if outcome.code == 2 and len(errors) > 1:
        found.append("several lines")
    if outcome.code == 2 and not errors and not is_silent:
        found.append("no error on stderr")
    return found


def _leftovers(command: Command, outcome: Outcome, room: Path) -> list[str]:
    found = []
    temporary = room / "tmp"
    # A process that died of a signal cannot clean up.
    left = sorted(path.name for path in temporary.iterdir()) if temporary.is_dir() else []
    if left and outcome.code >= 0:
        found.append(f"left in the temporary folder: {left[0]}")
    hidden = [path for path in room.rglob(".*.unfinished*") if path.exists()]
    if hidden and outcome.code >= 0:
        found.append("unfinished folder left")
    destination = command.destination
    if destination is not None and destination.is_dir():
        is_whole = any((destination / name).is_file() for name in _RESULTS)
        if not is_whole and any(destination.iterdir()):
            found.append("half a result")
        if outcome.code == 2 and not (room / "had-destination").exists():
            found.append("a result in spite of an error")
    return found
