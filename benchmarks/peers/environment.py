"""The virtual environments of other runtimes, separate from the project's environment."""

import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".venv-peers"
PYTHON = ENVIRONMENT / "bin/python"
# This project in OpenVINO's build of ONNX Runtime, which the Makefile installs for the tests.
OPENVINO_BUILD = ".venv-openvino"
OPENVINO_BUILD_PYTHON = ROOT / OPENVINO_BUILD / "bin/python"
# Module of `peers` -> packages that it needs. requirements.txt has their versions.
PACKAGES = {
    "openvino_model": ("openvino", "nncf", "optimum-intel", "optimum", "torch", "transformers"),
    "genai": ("onnxruntime-genai", "onnxruntime", "onnx", "onnx-ir", "torch", "transformers"),
}


class InstallError(Exception):
    """A runtime could not be installed. The last line of pip's output gives the reason."""


def install_peer(module: str) -> None:
    """Install a runtime into the environment, unless the versions of requirements.txt are there.

    Raises:
        InstallError: the environment or a package could not be installed.
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
    # optimum-intel installs torchvision, which breaks transformers if it is for another torch.
    _run(*pip, "uninstall", "--yes", "torchvision")
    installed.write_text(wanted, encoding="utf-8")


def install_openvino_build() -> None:
    """Install this project beside OpenVINO's build of ONNX Runtime, unless it is there.

    Raises:
        InstallError: the environment or a package could not be installed.
    """
    _run("make", "--directory", str(ROOT), f"{OPENVINO_BUILD}/installed")


def _run(*command: str) -> None:
    try:
        subprocess.run(command, capture_output=True, text=True, check=True)
    except OSError as error:
        raise InstallError(str(error)) from error
    except subprocess.CalledProcessError as error:
        raise InstallError(error.stdout + error.stderr) from error
