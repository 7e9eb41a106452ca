"""The peers' own virtual environment, so that nothing of theirs touches the project's."""

import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
ENVIRONMENT = Path(__file__).resolve().parents[2] / ".venv-peers"
PYTHON = ENVIRONMENT / "bin/python"
# What a peer needs, by its module's name; the versions stand in requirements.txt.
PACKAGES = {
    "openvino_model": ("openvino", "nncf", "optimum-intel", "optimum", "torch", "transformers"),
    "genai": ("onnxruntime-genai", "onnxruntime", "onnx", "onnx-ir", "torch", "transformers"),
}


class InstallError(Exception):
    """A peer could not be installed; the last line of pip's says why."""


def install_peer(module: str) -> None:
    """Put a peer into the environment, unless it is there at the versions of requirements.txt.

    Raises:
        InstallError: neither the environment nor the packages could be had.
    """
    installed = ENVIRONMENT / f"installed.{module}.txt"
    wanted = REQUIREMENTS.read_text("utf-8")
    if installed.exists() and installed.read_text("utf-8") == wanted:
        return
    print(f"installing {module} into {ENVIRONMENT}", file=sys.stderr, flush=True)
    _run(sys.executable, "-m", "venv", str(ENVIRONMENT))
    pip = (str(PYTHON), "-m", "pip", "--quiet", "--disable-pip-version-check")
    pins = [line for line in wanted.splitlines() if line.split("==")[0] in PACKAGES[module]]
    _run(*pip, "install", *pins)
    # optimum-intel asks for it; a torchvision built for another torch breaks transformers' imports.
    _run(*pip, "uninstall", "--yes", "torchvision")
    installed.write_text(wanted, encoding="utf-8")


def _run(*command: str) -> None:
    try:
        subprocess.run(command, capture_output=True, text=True, check=True)
    except OSError as error:
        raise InstallError(str(error)) from error
    except subprocess.CalledProcessError as error:
        raise InstallError(error.stdout + error.stderr) from error
