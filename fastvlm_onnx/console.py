"""Standard streams that take every character, and a stderr that may be full.

Standard library only.
"""

import io
import json
import os
import sys


def accept_every_character() -> None:
    r"""Let stdout and stderr take characters that their encoding lacks.

    Windows gives a pipe the encoding of the system, such as cp1252. A program that reads our lines
    expects UTF-8, so a pipe gets UTF-8 there. Other streams with few characters get escapes such as
    `\u65e5`. PYTHONIOENCODING keeps its encoding.
    """
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper) or stream.encoding.lower() in ("utf-8", "utf8"):
            continue
        if sys.platform == "win32" and "PYTHONIOENCODING" not in os.environ:
            stream.reconfigure(encoding="utf-8")
        elif stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def say(message: str = "") -> None:
    """Write a line to stderr, if there is a stderr that takes it.

    A command's result does not depend on its messages: where stderr is a full disk or a pipe
    without a reader, they are dropped from then on.
    """
    if sys.stderr is None:
        return
    try:
        print(message, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        sys.stderr = None


def encodable_json(line: str) -> str:
    """Return a line of JSON with JSON's own escapes, where stdout's encoding lacks a character."""
    try:
        line.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(json.loads(line))
    return line
