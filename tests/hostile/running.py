"""Run cases by class, keep count, and print a table."""

import json
import os
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

import click

from tests.hostile import command_cases, file_cases
from tests.hostile.api_cases import run_calls
from tests.hostile.case import Command, Outcome
from tests.hostile.children import in_child, run, wait
from tests.hostile.judging import problems
from tests.hostile.material import Material, make_material

Make = Callable[[Random, Material, Path], Command]

API: Final = "API calls"
BATCH: Final = 200  # calls of one child
BATCH_SECONDS: Final = 120.0
# Each class with its share of all cases, in thousandths.
CLASSES: Final[dict[str, tuple[int, Make | None]]] = {
    API: (600, None),
    "command lines": (150, command_cases.command_lines),
    "manifests": (80, file_cases.manifests),
    "package files": (20, file_cases.package_files),
    "arrays": (20, file_cases.arrays),
    "graphs": (10, file_cases.graphs),
    "tokenizers": (20, file_cases.package_tokenizers),
    "checkpoints": (20, file_cases.checkpoints),
    "templates": (5, file_cases.templates),
    "safetensors": (30, file_cases.safetensors),
    "zips": (20, file_cases.zips),
    "pictures": (15, file_cases.pictures),
    "surroundings": (7, command_cases.surroundings),
    "signals": (3, command_cases.signals),
}
ALL_SHARES: Final = sum(share for share, _ in CLASSES.values())
PART: Final = 1000  # cases of all classes that run before the next of each


@dataclass
class Progress:
    """Counts of a run, which a file can keep.

    Attributes:
        seed: the seed that all cases are made from.
        done: cases by class.
        codes: exit codes by class.
        problems: problems by class.
        failures: a line for each case that failed.
    """

    seed: int
    done: dict[str, int] = field(default_factory=dict)
    codes: dict[str, dict[str, int]] = field(default_factory=dict)
    problems: dict[str, dict[str, int]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    path: Path | None = None

    @classmethod
    def read(cls, path: Path | None, seed: int) -> "Progress":
        """Read a file of progress, or begin anew where there is none."""
        if path is None or not path.exists():
            return cls(seed, path=path)
        found = json.loads(path.read_text("utf-8"))
        if found["seed"] != seed:
            raise click.UsageError(f"{path} was made with --seed {found['seed']}.")
        return cls(**found, path=path)

    def write(self) -> None:
        """Write the file, if there is one."""
        if self.path is None:
            return
        content = asdict(self)
        del content["path"]
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(content, indent=1), "utf-8")
        new.replace(self.path)

    def add(self, name: str, number: int, outcome: Outcome, found: list[str]) -> None:
        """Count a case."""
        self.done[name] = number + 1
        codes = Counter(self.codes.get(name, {}))
        codes[str(outcome.code)] += 1
        self.codes[name] = dict(codes)
        last = outcome.stderr.decode("utf-8", "backslashreplace").strip().split("\n")[-1][:160]
        for problem in found:
            self.add_problem(name, number, problem, last)

    def add_problem(self, name: str, number: int, problem: str, shown: str = "") -> None:
        """Count a problem of a case, with the command that repeats the case."""
        counted = Counter(self.problems.get(name, {}))
        counted[problem if name != API else problem.partition(":")[0]] += 1
        self.problems[name] = dict(counted)
        command = f"python -m tests.hostile --seed {self.seed} --case '{name}:{number}'"
        self.failures.append(f"{problem}: {command}  {shown!r}")


class Runner:
    """Makes cases, runs them and judges them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._seed = folder, seed
        # An export opens no session, but it is a child's work: this process stays without threads.
        pid = os.fork()
        if pid == 0:
            in_child(lambda: make_material(folder))
        code, _ = wait(pid, 120)
        assert code == 0, "the built-in model cannot be exported"
        self._material = Material.found(folder)
        _warm()

    @property
    def package(self) -> Path:
        """The built-in model, exported."""
        return self._material.package

    def run(self, cases: int, only: str | None, progress: Progress) -> None:
        """Run the cases that are not done yet, some of each class at a time."""
        parts = max(1, cases // PART)
        for part in range(1, parts + 1):
            for name, (share, _) in CLASSES.items():
                if only not in (None, name):
                    continue
                count = cases if only else round(cases * share / ALL_SHARES)
                self._run_class(name, count * part // parts, progress)

    def _run_class(self, name: str, count: int, progress: Progress) -> None:
        """Run the cases of a class up to `count`."""
        if name == API:
            self._run_calls(count, progress)
            return
        for number in range(progress.done.get(name, 0), count):
            outcome, found = self._case(name, number)[1:]
            progress.add(name, number, outcome, found)
            if number % 20 == 0:
                progress.write()
        progress.write()

    def show(self, name: str, number: int) -> None:
        """Run a case, and print its command, its output and its problems."""
        if name == API:
            click.echo(self._calls(range(number, number + 1)) or "no problem")
            return
        command, outcome, found = self._case(name, number)
        click.echo(f"{shlex.join(command.arguments)}\n{command}\nexit code {outcome.code}")
        click.echo(outcome.stdout[:2000])
        click.echo(outcome.stderr.decode("utf-8", "backslashreplace"))
        click.echo(f"problems: {', '.join(found) or 'none'}")

    def _run_calls(self, count: int, progress: Progress) -> None:
        """Make the calls that are not made yet, in children of BATCH calls."""
        while (first := progress.done.get(API, 0)) < count:
            numbers = range(first, min(first + BATCH, count))
            problems_found = self._calls(numbers)
            for number, problem in problems_found.items():
                progress.add_problem(API, number, problem)
            progress.done[API] = numbers.stop
            progress.write()

    def _calls(self, numbers: range) -> dict[int, str]:
        """Make calls in a child; after a crash, another child makes the rest."""
        room, found = self._folder / "case", {}
        while numbers:
            (room / "work").mkdir(parents=True)
            lines = room / "found"
            make = partial(run_calls, self._material, room, self._seed, numbers, lines)
            sys.stdout.flush()
            pid = os.fork()
            if pid == 0:
                in_child(make)
            code, is_late = wait(pid, BATCH_SECONDS)
            written = lines.read_text("utf-8").splitlines()
            shutil.rmtree(room, ignore_errors=True)
            found |= {item[0]: item[1] for item in map(_parsed, written) if item and item[1]}
            if code == 0 and written[-1] == "done":
                break
            latest = _parsed(written[-1])
            number = latest[0] if latest else numbers[0]
            found[number] = "hang" if is_late else f"ended with {code}"
            numbers = range(number + 1, numbers.stop)
        return found

    def _case(self, name: str, number: int) -> tuple[Command, Outcome, list[str]]:
        room = self._folder / "case"
        room.mkdir()
        room.chmod(0o755)
        try:
            random = Random(f"{self._seed} {name} {number}")
            make = CLASSES[name][1]
            assert make is not None
            command = make(random, self._material, room)
            outcome = run(command, room)
            return command, outcome, problems(command, outcome, room)
        finally:
            shutil.rmtree(room, ignore_errors=True)


def table(progress: Progress) -> str:
    """A Markdown table: cases, exit codes and problems by class."""
    rows = ["| class | cases | exit codes | problems |", "|---|---:|---|---|"]
    for name, done in progress.done.items():
        codes = ", ".join(
            f"{code}: {count:,}" for code, count in sorted(progress.codes.get(name, {}).items())
        )
        found = progress.problems.get(name, {})
        listed = ", ".join(f"{problem}: {count}" for problem, count in found.items())
        rows.append(f"| {name} | {done:,} | {codes} | {listed or '0'} |")
    rows.append(f"| all | {sum(progress.done.values()):,} | | {len(progress.failures):,} cases |")
    return "\n".join(rows)


def _parsed(line: str) -> Any:
    return None if line == "done" else json.loads(line)


def _warm() -> None:
    """Import all that commands import, but open no session: its threads would not be forked."""
    import fastvlm_onnx.export.pipeline
    import fastvlm_onnx.runtime.captions
    import fastvlm_onnx.runtime.loading
    import fastvlm_onnx.runtime.serving.scheduler
    import fastvlm_onnx.server.running  # noqa: F401
