"""The peers' own virtual environment, so that nothing of theirs touches the project's."""

import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
ENVIRONMENT = Path(__file__).resolve().parents[2] / ".venv-peers"
PYTHON = ENVIRONMENT / "bin/python"


def install_peers() -> None:
    """Make the environment, or make it anew when the requirements have changed.

    Raises:
        CalledProcessError: pip failed; what it said is on stderr.
    """
    installed = ENVIRONMENT / "installed.txt"
    wanted = REQUIREMENTS.read_text("utf-8")
    if installed.exists() and installed.read_text("utf-8") == wanted:
        return
    print(f"installing the peers into {ENVIRONMENT}", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
    pip = [str(PYTHON), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "-r", str(REQUIREMENTS)], check=True)
    # optimum-intel asks for it; a torchvision built for another torch breaks transformers' imports.
    subprocess.run([*pip, "uninstall", "--yes", "torchvision"], check=True)
    installed.write_text(wanted, encoding="utf-8")
