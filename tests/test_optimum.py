"""`optimum-cli export fastvlm-onnx`: our wheel beside optimum, in an environment made for it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OPTIMUM = "optimum==2.3.0"
pytestmark = pytest.mark.slow  # installs an environment: about a minute


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def bin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with our wheel and optimum, and neither PyTorch nor transformers."""
    folder = tmp_path_factory.mktemp("optimum")
    built = run(sys.executable, "-m", "build", "--wheel", "-n", "-o", folder, ROOT)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = folder.glob("*.whl")
    assert run(sys.executable, "-m", "venv", folder / "venv").returncode == 0
    install = (folder / "venv/bin/pip", "install", "--quiet")
    constraints = ("-c", ROOT / "constraints.txt")
    done = run(*install, *constraints, f"{wheel}[cpu,export]", "packaging")
    assert done.returncode == 0, done.stderr
    done = run(*install, "--no-deps", OPTIMUM)
    if done.returncode:
        pytest.skip(f"{OPTIMUM} cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    return folder / "venv/bin"


def test_optimum_lists_the_command(bin_folder: Path) -> None:
    done = run(bin_folder / "optimum-cli", "export", "--help")
    assert "fastvlm-onnx" in done.stdout, done.stderr


def test_its_options_are_those_of_our_own_command(bin_folder: Path) -> None:
    ours = run(bin_folder / "fastvlm-onnx", "export", "--help").stdout
    theirs = run(bin_folder / "optimum-cli", "export", "fastvlm-onnx", "--help").stdout
    options = {word.rstrip(",") for word in ours.split() if word.startswith("--")}
    assert options - {"--output", "--help"} <= {word.rstrip(",") for word in theirs.split()}
    assert "--precision" in theirs


def test_it_exports_and_the_package_answers(bin_folder: Path, tmp_path: Path) -> None:
    command = ("export", "fastvlm-onnx", "-m", "demo", tmp_path / "onnx", "--precision", "int8")
    done = run(bin_folder / "optimum-cli", *command)
    assert done.returncode == 0, done.stderr
    picture = ROOT / "fastvlm_onnx/demo/pictures/word.png"
    answer = ("generate", picture, "What does the image say?", "--model", tmp_path / "onnx")
    assert run(bin_folder / "fastvlm-onnx", *answer).stdout.strip() == "CARD"


def test_a_bad_checkpoint_is_one_line_and_exit_code_2(bin_folder: Path, tmp_path: Path) -> None:
    command = ("export", "fastvlm-onnx", "-m", tmp_path / "absent", tmp_path / "onnx")
    done = run(bin_folder / "optimum-cli", *command)
    assert done.returncode == 2
    assert "absent: no such folder" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "onnx").exists()


def test_neither_pytorch_nor_transformers_is_needed(bin_folder: Path) -> None:
    listed = run(bin_folder / "pip", "list", "--format=freeze").stdout.lower()
    assert "optimum==" in listed
    assert "torch==" not in listed
    assert "transformers==" not in listed


def test_optimum_works_on_when_ours_is_gone(bin_folder: Path) -> None:  # the last one: it removes
    assert run(bin_folder / "pip", "uninstall", "--yes", "fastvlm-onnx").returncode == 0
    done = run(bin_folder / "optimum-cli", "export", "--help")
    assert done.returncode == 0, done.stderr
    assert "fastvlm-onnx" not in done.stdout
