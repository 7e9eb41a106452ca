"""Kill commands at random times, and look at what is left and whether the next run recovers."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

from fastvlm_onnx.errors import PackageError
from fastvlm_onnx.package import read_manifest
from fastvlm_onnx.package_files import check_files
from tests.hostile.material import DEMO, imported

PICTURES: Final = sorted(str(path) for path in (DEMO / "pictures").glob("*.*g"))
PROGRAM: Final = (sys.executable, "-m", "fastvlm_onnx")
RECOVERY_SECONDS: Final = 300.0


@dataclass(frozen=True)
class Job:
    """A command that is killed.

    Attributes:
        arguments: the command line.
        again: the command line that recovers.
        check: returns the problem of the folder after the kill, or None.
        check_recovered: the same after the recovery.
    """

    arguments: list[str]
    again: list[str]
    check: Callable[[Path], str | None]
    check_recovered: Callable[[Path], str | None]


@dataclass
class Kills:
    """Counts of kills by command.

    Attributes:
        done: kills.
        in_time: kills that came before the command's end.
        problems: a line for each kill that left half a result or could not be recovered from.
    """

    done: Counter[str] = field(default_factory=Counter)
    in_time: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def table(self) -> str:
        """A Markdown table by command."""
        rows = ["| command | kills | of them before its end |", "|---|---:|---:|"]
        rows += [f"| {name} | {n} | {self.in_time[name]} |" for name, n in self.done.items()]
        total = sum(self.done.values())
        rows.append(f"| all | {total} | {sum(self.in_time.values())} |")
        return "\n".join([*rows, "", f"Half results and failed recoveries: {len(self.problems)}."])


def kill(package: Path, folder: Path, count: int, seed: int) -> Kills:
    """Kill each command in turn, `count` times in all.

    Args:
        package: the built-in model, exported.
        folder: an empty folder to work in.
        count: number of kills.
        seed: of the moments.
    """
    found = Kills()
    with _archive_server() as address:
        makers = _jobs(package, address)
        seconds = {
            name: _seconds_of(make, folder / "whole", package) for name, make in makers.items()
        }
        for number in range(count):
            name = list(makers)[number % len(makers)]
            random = Random(f"{seed} kill {number}")
            room = folder / "room"
            _prepare(room, package)
            job = makers[name](room)
            process = _start(job.arguments, room)
            time.sleep(random.uniform(0.0, seconds[name]))
            found.in_time[name] += process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.wait()
            found.done[name] += 1
            problem = job.check(room) or _recovery(job, room)
            if problem:
                found.problems.append(f"{name}, kill {number}: {problem}")
    return found


def _jobs(package: Path, address: str) -> dict[str, Callable[[Path], Job]]:
    few = ["--max-new-tokens", "3", "--model", str(package)]

    def export(room: Path) -> Job:
        command = ["export", "demo", "-o", str(room / "new")]
        return Job(command, [*command, "--overwrite"], _package("new"), _whole("new"))

    def add(room: Path) -> Job:
        command = ["export", "demo", "-o", str(room / "old"), "--add", "--precision", "fp16"]
        again = ["export", "demo", "-o", str(room / "old"), "--overwrite"]
        return Job(command, again, _whole("old", may_hide=True), _whole("old"))

    def caption(room: Path) -> Job:
        command = ["caption", *PICTURES, "-o", str(room / "captions.jsonl"), *few]
        return Job(command, [*command, "--resume"], lambda _: None, _captions)

    def download(room: Path) -> Job:
        command = ["download", "0.5b", "-o", str(room / "checkpoint"), "--base-url", address]
        return Job(command, command, _checkpoint, _checkpoint)

    def serve(room: Path) -> Job:
        command = ["serve", "--port", "0", "--model", str(package)]
        return Job(command, ["inspect", str(package)], _whole("old"), _whole("old"))

    return {
        "export": export,
        "--add": add,
        "caption": caption,
        "download": download,
        "serve": serve,
    }


def _prepare(room: Path, package: Path) -> None:
    shutil.rmtree(room, ignore_errors=True)
    room.mkdir(parents=True)
    (room / "old").mkdir()
    for file in package.iterdir():
        os.link(file, room / "old" / file.name)


def _start(arguments: list[str], room: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "FASTVLM_ONNX_HOME": str(room / "home"), "TMPDIR": str(room)}
    errors = (room / "stderr").open("wb")
    with errors:
        return subprocess.Popen(
            [*PROGRAM, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=environment,
            cwd=room,
        )


def _seconds_of(make: Callable[[Path], Job], room: Path, package: Path) -> float:
    """How long a command runs that nothing disturbs; two seconds for the server."""
    _prepare(room, package)
    began = time.monotonic()
    process = _start(make(room).arguments, room)
    if process.args[len(PROGRAM)] == "serve":  # type: ignore[index]
        time.sleep(2.0)
        process.kill()
    process.wait()
    shutil.rmtree(room)
    return time.monotonic() - began


def _recovery(job: Job, room: Path) -> str | None:
    process = _start(job.again, room)
    try:
        code = process.wait(RECOVERY_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return "the next run hangs"
    errors = (room / "stderr").read_text("utf-8", "replace")
    if code != 0:
        return f"the next run ends with {code}: {errors[-200:]}"
    hidden = [path.name for path in room.iterdir() if path.name.startswith(".")]
    if hidden:
        return f"the next run leaves {hidden}"
    return job.check_recovered(room)


def _whole(name: str, *, may_hide: bool = False) -> Callable[[Path], str | None]:
    """A check that a package is there, with every file of its manifest."""

    def check(room: Path) -> str | None:
        hidden = list(room.glob(f".{name}.replaced-*"))
        if may_hide and not (room / name).exists() and hidden:
            return None  # killed between two renames: the next run gives the name back
        try:
            manifest = read_manifest(room / name)
            check_files(room / name, list(manifest.files), manifest)
        except PackageError as error:
            return f"half a package: {error}"
        return None

    return check


def _package(name: str) -> Callable[[Path], str | None]:
    """A check that a package is whole or not there."""
    return lambda room: _whole(name)(room) if (room / name).exists() else None


def _captions(room: Path) -> str | None:
    lines = (room / "captions.jsonl").read_text("utf-8").splitlines()
    try:
        paths = [json.loads(line)["path"] for line in lines]
    except ValueError:
        return "a line of captions is half"
    return None if sorted(paths) == PICTURES else f"{len(paths)} of {len(PICTURES)} captions"


def _checkpoint(room: Path) -> str | None:
    folder = room / "checkpoint"
    if not folder.exists():
        return None
    expected = {path.name: path.stat().st_size for path in (DEMO / "checkpoint").iterdir()}
    found = {path.name: path.stat().st_size for path in folder.iterdir()}
    return None if found == expected else f"half a checkpoint: {sorted(found)}"


@contextmanager
def _archive_server() -> Iterator[str]:
    """A slow local server of the built-in checkpoint, under the name of Apple's smallest."""
    apple, server = imported("apple_archive"), imported("archive_server")
    content = apple.apple_archive(DEMO / "checkpoint")
    archive = server.ArchiveServer(f"/datasets/{apple.NAME}.zip", content, seconds=0.005)
    with server.serve(archive) as started:
        yield f"{started.address}/datasets"
