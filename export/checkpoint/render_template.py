"""Render a Jinja template in a process of its own: JSON on stdin, JSON on stdout.

It runs as a program, since a template can take any amount of time and memory. Input: an object with
`template`; `conversations`, a list of names and values for the template; and `seconds`, the limit
of processor time. Output: a list with an object for each conversation, `{"text": ...}` or
`{"error": ...}`.
"""

import json
import sys
from datetime import datetime
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY_BYTES = 1 << 30
LONGEST_TEXT = 100_000  # characters; a conversation format has some hundred


def main() -> None:
    given = json.load(sys.stdin)
    _limit_resources(given["seconds"])
    # The settings and names that transformers gives a template.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    json.dump(
        [_render(environment, given["template"], names) for names in given["conversations"]],
        sys.stdout,
    )


def _render(
    environment: ImmutableSandboxedEnvironment, template: Any, names: dict[str, Any]
) -> dict[str, str]:
    text = ""
    try:
        for piece in environment.from_string(template).generate(names):
            text += piece
            if len(text) > LONGEST_TEXT:
                return {"error": f"it gives more than {LONGEST_TEXT:,} characters"}
    # A template works on Python objects, so it can also raise Python's own errors.
    except (
        *(TemplateError, TypeError, ValueError, AttributeError, LookupError),
        *(ArithmeticError, RecursionError),
    ) as error:
        return {"error": " ".join(str(error).split())[:200]}
    except MemoryError:
        return {"error": f"it needs more than {MEMORY_BYTES:,} bytes"}
    return {"text": text}


def _limit_resources(seconds: int) -> None:
    """Limit memory and processor time, where the system has such limits (not Windows)."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    # macOS refuses this limit.
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    except (OSError, ValueError):
        return


if __name__ == "__main__":
    main()
