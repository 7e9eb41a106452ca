"""A disk that is soon full: a tmpfs in a namespace of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

EXPORT = """
set -e
mount -t tmpfs -o size={megabytes}m tmpfs "$1"
cd "$1"
{python} - <<'E'
from pathlib import Path
from fastvlm_onnx import PackageError
from fastvlm_onnx.export.pipeline import export_package
{before}
def fill(stage, done, total):
    if "{stage}" in stage and not Path("filler").exists():
        with open("filler", "wb", buffering=0) as file:
            try:
                while file.write(bytes(1 << 16)): pass
            except OSError: pass
try:
    export_package("demo", "onnx", progress=fill, {options})
except PackageError as error:
    print(error)
print(sorted(path.name for path in Path().iterdir()))
E
"""


def on_small_disk(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a shell script, `$1` being `folder`, where it may mount; or skip and say why."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"this machine does not allow mounting a small disk: {done.stderr.strip()}")
    return done


def export_until_full(
    folder: Path, megabytes: int, stage: str, options: str = "", before: str = ""
) -> list[str]:
    """Export onto a disk that is filled up at a stage.

    Args:
        folder: where the disk is mounted.
        megabytes: the size of the disk.
        stage: a part of the stage's name in reports of progress.
        options: more arguments of `export_package`, as source text.
        before: a line to run first.

    Returns:
        The error's message, and the names in the folder afterwards.
    """
    script = EXPORT.format(
        megabytes=megabytes, python=sys.executable, stage=stage, options=options, before=before
    )
    done = on_small_disk(script, folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
