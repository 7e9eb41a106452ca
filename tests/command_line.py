"""Our commands, run as a shell runs them."""

import os
import subprocess
import sys


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fastvlm_onnx", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def refusal(*arguments: object, **environment: str) -> str:
    """The one line on stderr of a command that the caller got wrong."""
    done = run(*arguments, **environment)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    line, *more = done.stderr.splitlines()
    assert not more
    return line
