"""A disk that is soon full: a tmpfs in a namespace of its own."""

import subprocess
from pathlib import Path

import pytest


def on_small_disk(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a shell script, `$1` being `folder`, where it may mount; or skip and say why."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"this machine does not allow mounting a small disk: {done.stderr.strip()}")
    return done
