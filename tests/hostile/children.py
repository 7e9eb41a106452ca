"""Run a command in a child: a fork of this warm process, or a new interpreter."""

import atexit
import ctypes
import io
import os
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

from tests.hostile.case import SECONDS, Command, Outcome

# Numbers of Linux's headers.
_CAPABILITY_VERSION_3: Final = 0x20080522
_PR_SET_SECUREBITS: Final = 28
_SECBIT_NOROOT: Final = 1
# The program, which tells when its first line has run: SIGINT before it meets Python's own start.
_TOLD: Final = """\
import os, signal
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.close(%d)
from fastvlm_onnx.__main__ import run
run()
"""


def run(command: Command, room: Path, seconds: float = SECONDS) -> Outcome:
    """Run a command and wait for its end.

    Args:
        command: the command.
        room: the case's folder. `work` is the current folder of the command, `home` its home and
            `tmp` its folder for temporary files.
        seconds: the time that the command gets.
    """
    for name in ("work", "home", "tmp"):
        (room / name).mkdir(exist_ok=True)
    (room / "stdin").write_bytes(command.stdin)
    sys.stdout.flush()
    sys.stderr.flush()
    begun, begins = os.pipe()
    os.set_inheritable(begins, command.signal is not None)
    pid = os.fork()
    if pid == 0:
        in_child(lambda: _begin(command, room, begins))
    os.close(begins)
    try:
        if command.signal is not None:
            os.read(begun, 1)  # returns when the child has closed its end
        code, is_late = wait(pid, seconds, command.signal)
    finally:
        os.close(begun)
    return Outcome(
        code, (room / "stdout").read_bytes(), (room / "stderr").read_bytes(), is_late=is_late
    )


def wait(
    pid: int, seconds: float, to_send: tuple[signal.Signals, float] | None = None
) -> tuple[int, bool]:
    """Wait for a child.

    The child's time is its processor time and the time that it sleeps. Time that it waits for a
    processor does not count, nor time during which this process is stopped.

    Returns:
        The exit code, or minus a signal's number; and whether the child was ended for its time.
    """
    elapsed = asleep = 0.0
    is_late, before = False, time.monotonic()
    descriptor = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    try:
        while not poll.poll(5 if to_send else 100):
            now = time.monotonic()
            step, before = min(now - before, 0.2), now
            elapsed += step
            is_asleep, processor_seconds = _state(pid)
            asleep += step if is_asleep else 0.0
            if to_send is not None and elapsed >= to_send[1]:
                os.kill(pid, to_send[0])
                to_send = None
            if asleep + processor_seconds > seconds:
                is_late = True
                os.kill(pid, signal.SIGKILL)
                poll.poll()
                break
    finally:
        os.close(descriptor)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), is_late


def _state(pid: int) -> tuple[bool, float]:
    """Whether a process sleeps, and its processor time in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    return fields[0] in "SD", ticks / os.sysconf("SC_CLK_TCK")


def in_child(action: Callable[[], object]) -> NoReturn:
    """Do something in a process that was just forked, and end it as Python ends.

    Nothing of the parent's frames runs.
    """
    code = 70
    try:
        code = _exit_code(action)
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            try:
                if stream is not None:
                    stream.flush()
            except (OSError, ValueError):
                code = 120  # as Python has it
    finally:
        os._exit(code)


def _exit_code(action: Callable[[], object]) -> int:
    try:
        action()
    except SystemExit as ending:
        if ending.code is None:
            return 0
        return ending.code if isinstance(ending.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        return 1
    return 0


def _begin(command: Command, room: Path, begins: int) -> None:
    environment = {
        **os.environ,
        "HOME": str(room / "home"),
        "TMPDIR": str(room / "tmp"),
        "FASTVLM_ONNX_HOME": str(room / "home"),
        "HF_HOME": str(room / "home"),
        "HF_HUB_OFFLINE": "1",
        # PyTorch makes a folder when it is imported.
        "TORCHINDUCTOR_CACHE_DIR": str(room / "home"),
    }
    environment.pop("FASTVLM_ONNX_MODEL", None)
    for name, value in command.environment.items():
        if value is None:
            environment.pop(name, None)
        else:
            environment[name] = value
    os.chdir(room / "work")
    _redirect(command, room)
    for kind, limit in (
        (resource.RLIMIT_AS, command.limits.memory_bytes),
        (resource.RLIMIT_NOFILE, command.limits.files),
        (resource.RLIMIT_FSIZE, command.limits.file_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        if limit is not None:
            resource.setrlimit(kind, (limit, limit))
    if command.is_unprivileged:
        _drop_privileges()
    if command.is_fresh:
        program = ["-m", "fastvlm_onnx"] if command.signal is None else ["-c", _TOLD % begins]
        arguments = [sys.executable, *program, *command.arguments]
        os.execve(sys.executable, arguments, environment)
    os.environ.clear()
    os.environ.update(environment)
    import tempfile

    tempfile.tempdir = None  # it is chosen anew from TMPDIR
    from fastvlm_onnx.cli import main

    main(command.arguments)


def _drop_privileges() -> None:
    """Let files' permissions hold for root too, as in a container that has no capabilities."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    libc.prctl(_PR_SET_SECUREBITS, _SECBIT_NOROOT)
    libc.capset(header, nothing)


def _redirect(command: Command, room: Path) -> None:
    for number, (name, flags) in enumerate(
        (
            ("stdin", os.O_RDONLY),
            ("stdout", os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
            ("stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        )
    ):
        opened = os.open(room / name, flags, 0o666)
        if number in command.full:
            os.close(opened)
            opened = os.open("/dev/full", os.O_WRONLY)
        os.dup2(opened, number)
        os.close(opened)
        if number in command.closed:
            os.close(number)
    if command.is_fresh:
        return
    # As a new interpreter would make them.
    sys.stdin = None if 0 in command.closed else os.fdopen(0, "r", closefd=False)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = None
        if number not in command.closed:
            stream = io.TextIOWrapper(
                os.fdopen(number, "wb", closefd=False),
                encoding="utf-8",
                errors="backslashreplace" if number == 2 else "strict",
                line_buffering=number == 2,
            )
        setattr(sys, name, stream)
