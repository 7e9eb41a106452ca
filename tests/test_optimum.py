"""`optimum-cli export fastvlm-onnx`: the same options, words and packages as our own command.

The fast tests give our class a stand-in for the two names it takes from optimum; the slow ones
run the built wheel beside optimum itself, in an environment made for it.
"""

import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import click
import pytest

from fastvlm_onnx import cli

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


# --- without optimum ---------------------------------------------------------------------------


class CommandOfOptimum:
    """The parts of a command line that optimum's own base class keeps."""

    def __init__(self, args: object) -> None:
        self.args = args


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    base = ModuleType("optimum.commands.base")
    base.__dict__.update(BaseOptimumCLICommand=CommandOfOptimum, CommandInfo=SimpleNamespace)
    for module in (ModuleType("optimum"), ModuleType("optimum.commands"), base):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    yield import_module("fastvlm_onnx.optimum_command").FastVLMOnnxExportCommand
    del sys.modules["fastvlm_onnx.optimum_command"]


@pytest.fixture
def parser(command: Any) -> ArgumentParser:
    parser = ArgumentParser()
    command.parse_args(parser)
    return parser


def test_its_options_are_those_of_our_own_command(parser: ArgumentParser) -> None:
    ours = {name for p in cli.export.params if isinstance(p, click.Option) for name in p.opts}
    theirs = {name for action in parser._actions for name in action.option_strings}
    assert theirs == ours - {"-o", "--output"} | {
        "-m",
        "--model",
        "--debug",
        "-h",
        "--help",
    }
    assert "Folder to make." in parser.format_help()


@pytest.mark.parametrize(
    "options",
    [
        ("--precision", "fp33"),
        ("--precision", ""),
        ("--image-size", "big"),
        ("--base", "absent", "--overwrite"),
        ("--calibrate",),
        ("--calibrate", "absent", "--precision", "int4"),
    ],
    ids=" ".join,
)
def test_it_refuses_with_the_message_of_our_own_command(
    options: tuple[str, ...],
    command: Any,
    parser: ArgumentParser,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = str(tmp_path / "onnx")
    with pytest.raises(SystemExit) as ours:
        cli.main(["export", "demo", "-o", output, *options])
    words = capsys.readouterr().err
    with pytest.raises(SystemExit) as theirs:
        command(parser.parse_args(["-m", "demo", output, *options])).run()
    assert capsys.readouterr().err == words
    assert len(words.splitlines()) == 1
    assert theirs.value.code == ours.value.code == 2
    assert not Path(output).exists()


def test_debug_shows_a_traceback_under_optimum(
    command: Any, parser: ArgumentParser, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["-m", str(tmp_path / "absent"), str(tmp_path / "onnx")]
    for options, is_shown in (([], False), (["--debug"], True)):
        with pytest.raises(SystemExit):
            command(parser.parse_args([*arguments, *options])).run()
        assert ("Traceback" in capsys.readouterr().err) == is_shown


def test_a_checkpoint_that_looks_like_an_option_is_a_checkpoint(
    command: Any, parser: ArgumentParser, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command(parser.parse_args(["-m=-x", str(tmp_path / "onnx")])).run()
    assert "-x: no such folder" in capsys.readouterr().err


def test_the_commands_import_nothing_of_optimum() -> None:
    names = "('optimum', 'fastvlm_onnx.optimum_')"
    check = (
        f"import fastvlm_onnx.cli, sys; print([m for m in sys.modules if m.startswith({names})])"
    )
    done = run(sys.executable, "-c", check)
    assert done.stdout.strip() == "[]", done.stderr


# --- the wheel beside optimum --------------------------------------------------------------------


@pytest.fixture(scope="module")
def bin_folder(built_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with our wheel and optimum, and neither PyTorch nor transformers."""
    venv = tmp_path_factory.mktemp("optimum") / "venv"
    assert run(sys.executable, "-m", "venv", venv).returncode == 0
    install = (venv / "bin/pip", "install", "--quiet", "-c", ROOT / "constraints.txt")
    done = run(*install, f"{built_wheel}[cpu,export]", "packaging")
    assert done.returncode == 0, done.stderr
    assert run(venv / "bin/python", "-c", "import fastvlm_onnx").returncode == 0  # no optimum yet
    done = run(*install, "--no-deps", "optimum")
    if done.returncode:
        pytest.skip(f"optimum cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    return venv / "bin"


@pytest.mark.slow
def test_optimum_lists_the_command(bin_folder: Path) -> None:
    done = run(bin_folder / "optimum-cli", "export", "--help")
    assert "fastvlm-onnx" in done.stdout, done.stderr


@pytest.mark.slow
def test_it_exports_and_the_package_answers(bin_folder: Path, tmp_path: Path) -> None:
    command = ("export", "fastvlm-onnx", "-m", "demo", tmp_path / "onnx", "--precision", "int8")
    done = run(bin_folder / "optimum-cli", *command)
    assert done.returncode == 0, done.stderr
    picture = ROOT / "fastvlm_onnx/demo/pictures/word.png"
    answer = ("generate", picture, "What does the image say?", "--model", tmp_path / "onnx")
    assert run(bin_folder / "fastvlm-onnx", *answer).stdout.strip() == "History"


@pytest.mark.slow
def test_a_bad_checkpoint_is_one_line_and_exit_code_2(bin_folder: Path, tmp_path: Path) -> None:
    command = ("export", "fastvlm-onnx", "-m", tmp_path / "absent", tmp_path / "onnx")
    done = run(bin_folder / "optimum-cli", *command)
    assert done.returncode == 2
    assert "absent: no such folder" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "onnx").exists()


@pytest.mark.slow
def test_neither_pytorch_nor_transformers_is_needed(bin_folder: Path) -> None:
    listed = run(bin_folder / "pip", "list", "--format=freeze").stdout.lower()
    assert "optimum==" in listed
    assert "torch==" not in listed
    assert "transformers==" not in listed


@pytest.mark.slow
def test_optimum_works_after_our_package_is_uninstalled(
    bin_folder: Path,
) -> None:  # the last one: it removes
    assert run(bin_folder / "pip", "uninstall", "--yes", "fastvlm-onnx").returncode == 0
    done = run(bin_folder / "optimum-cli", "export", "--help")
    assert done.returncode == 0, done.stderr
    assert "fastvlm-onnx" not in done.stdout
