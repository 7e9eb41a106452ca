"""`fastvlm-onnx doctor`, and the options that say what runs where."""

import json
import subprocess
import sys
from pathlib import Path

from command_line import refusal, run

from fastvlm_onnx.names import VISION_ENCODER
from fastvlm_onnx.runtime.ort import providers
from fastvlm_onnx.runtime.ort.providers import CPU


def test_doctor_shows_the_machine_and_the_provider_of_each_graph(package: Path) -> None:
    done = run("doctor", package)
    assert done.returncode == 0, done.stderr
    version = providers.import_onnxruntime().__version__
    for words in (version, "auto takes", "fastvlm-onnx[cuda]", "decoder.fp32.onnx", "seconds"):
        assert words in done.stdout
    assert "--add --precision fast" in done.stdout


def test_doctor_exits_with_1_for_a_provider_that_does_not_work(package: Path) -> None:
    done = run("doctor", package, "--provider", "qnn")
    assert done.returncode == 1
    assert "QNNExecutionProvider is not in this ONNX Runtime" in done.stdout
    assert run("doctor", "--provider", "abacus").returncode == 1
    assert run("doctor").returncode == 0


def test_the_static_check_needs_a_package() -> None:
    assert "--static needs a package" in refusal("doctor", "--static", "coreml")


def test_the_static_check_names_the_packages_that_it_needs(package: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules['onnx'] = None  # as where only the runtime is installed\n"
        "from fastvlm_onnx.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", code, "doctor", str(package), "--static", "coreml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert 'run `pip install "fastvlm-onnx[export]"`' in done.stderr


def test_an_option_without_a_value_is_refused(package: Path) -> None:
    text = refusal("generate", "x.png", "Hi", "--model", package, "--provider-option", "device")
    assert "'device' is not NAME=VALUE" in text


def test_json_has_the_provider_of_each_graph(package: Path, picture: Path) -> None:
    done = run(
        "generate", picture, "Hi", "--model", package, "--max-new-tokens", "2", "--json",
        "--provider", "vision=cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["providers"][VISION_ENCODER] == CPU
