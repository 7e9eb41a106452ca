"""A case: a command with its input and surroundings, and the outcome of running it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals
from typing import Final

# The longest time of a case, in seconds.
SECONDS: Final = 30.0
# The largest address space of a case. ONNX Runtime and a picture of the largest size fit in it.
MEMORY_BYTES: Final = 6 << 30


@dataclass(frozen=True)
class Limits:
    """Limits of a child: None for no limit of this kind.

    Attributes:
        memory_bytes: address space (`ulimit -v`).
        files: open files (`ulimit -n`).
        file_bytes: the largest file (`ulimit -f`).
    """

    memory_bytes: int | None = MEMORY_BYTES
    files: int | None = None
    file_bytes: int | None = None


@dataclass(frozen=True)
class Command:
    """A command line and the surroundings that it runs in.

    Attributes:
        arguments: without the program's name.
        stdin: the whole of standard input.
        environment: variables to set, or to remove where the value is None.
        closed: descriptors that are closed: 0, 1, 2.
        full: descriptors that lead to /dev/full.
        limits: the child's limits.
        is_fresh: run a new interpreter, not a fork of a warm one.
        signal: a signal that is sent, and the seconds until then.
        is_unprivileged: permissions of files hold, even where root runs the cases.
        destination: the folder or file that the command may make.
        codes: exit codes that are right.
    """

    arguments: list[str]
    stdin: bytes = b""
    environment: Mapping[str, str | None] = field(default_factory=dict)
    closed: tuple[int, ...] = ()
    full: tuple[int, ...] = ()
    limits: Limits = Limits()
    is_fresh: bool = False
    signal: tuple[Signals, float] | None = None
    is_unprivileged: bool = False
    destination: Path | None = None
    codes: tuple[int, ...] = (0, 2)


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        code: the exit code, or minus the number of the signal that ended the process.
        stdout: the bytes that it wrote there.
        stderr: the bytes that it wrote there.
        is_late: it was ended because its time was over.
    """

    code: int
    stdout: bytes
    stderr: bytes
    is_late: bool = False
