"""The command `python -m tests.hostile`."""

import os
import shutil
import tempfile
from pathlib import Path

import click

from fastvlm_onnx.telemetry import disable_telemetry
from tests.hostile.kills import kill
from tests.hostile.running import CLASSES, Progress, Runner, table
from tests.hostile.soak import soak

LONGEST_LIST = 40  # failures that are printed; the file of --resume has all


@click.command()
@click.option("--cases", default=1000, show_default=True, help="Cases in all classes together.")
@click.option("--seed", default=1, show_default=True)
@click.option("--class", "only", type=click.Choice(list(CLASSES)), help="Cases of one class.")
@click.option("--resume", type=click.Path(path_type=Path), help="File that keeps the progress.")
@click.option("--case", "one", metavar="CLASS:NUMBER", help="Run one case, and show all of it.")
@click.option("--kills", type=int, help="Kill commands this many times instead.")
@click.option("--soak", "answers", type=int, help="Give this many answers in one process instead.")
def main(
    cases: int,
    seed: int,
    only: str | None,
    resume: Path | None,
    one: str | None,
    kills: int | None,
    answers: int | None,
) -> None:
    """Run bad inputs against the commands and the library, and print a table by class."""
    disable_telemetry()
    # Not tempfile.TemporaryDirectory: a child that ends would remove it.
    folder = Path(tempfile.mkdtemp(prefix="h-"))
    folder.chmod(0o755)
    parent = os.getpid()
    try:
        runner = Runner(folder, seed)
        if kills is not None:
            found = kill(runner.package, folder, kills, seed)
            click.echo("\n".join([found.table(), *found.problems]))
            raise SystemExit(1 if found.problems else 0)
        if answers is not None:
            level = soak(runner.package, answers)
            click.echo(level.table())
            raise SystemExit(0 if level.is_level else 1)
        if one is not None:
            name, _, number = one.partition(":")
            runner.show(name, int(number))
            return
        progress = Progress.read(resume, seed)
        runner.run(cases, only, progress)
        click.echo(table(progress))
        for failure in progress.failures[:LONGEST_LIST]:
            click.echo(failure)
    finally:
        if os.getpid() == parent:
            shutil.rmtree(folder, ignore_errors=True)
    raise SystemExit(1 if progress.failures else 0)


if __name__ == "__main__":
    main()
