"""The C++ client: builds without warnings, passes its own tests, and runs its README's example."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
CLIENT: Final = ROOT / "clients/cpp"
PICTURES: Final = ROOT / "fastvlm_onnx/demo/pictures"

pytestmark = pytest.mark.slow


def run(*command: str | Path, **environment: str) -> str:
    """Run a command and return its output; a failure shows it."""
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The build folder of the client, warnings being errors."""
    if not shutil.which("cmake"):
        pytest.skip("cmake is not installed; `apt install cmake g++`")
    folder = tmp_path_factory.mktemp("cpp") / "build"
    configure = ["cmake", "-S", str(CLIENT), "-B", str(folder), "-DFASTVLM_WERROR=ON"]
    configured = subprocess.run(configure, capture_output=True, text=True, check=False)
    if configured.returncode and not os.environ.get("ONNXRUNTIME_ROOT"):
        reason = configured.stderr.strip().splitlines()
        pytest.skip(
            "ONNXRUNTIME_ROOT is not set, and without it the client could not be configured: "
            + " ".join(reason[-4:])
        )
    assert configured.returncode == 0, configured.stderr
    run("cmake", "--build", folder, "--target", "all", "fastvlm-example", "--parallel", "2")
    return folder


@pytest.fixture(scope="module")
def vectors(variants_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pixels, token ids and answers of the Python runtime."""
    folder = tmp_path_factory.mktemp("vectors")
    run(sys.executable, ROOT / "tests/clients/cpp_vectors.py", variants_package, folder)
    return folder


def test_cpp_client_gives_pythons_pixels_token_ids_and_answers(
    build: Path, variants_package: Path, vectors: Path
) -> None:
    shown = run(
        "ctest",
        "--test-dir",
        build,
        "--output-on-failure",
        "--verbose",
        FASTVLM_TEST_PACKAGE=str(variants_package),
        FASTVLM_TEST_VECTORS=str(vectors),
    )
    assert shown.count(", 0 failed") == 4
    assert "skipped:" not in shown


def test_cpp_client_runs_a_standard_decoder_whose_cache_grows(
    build: Path, standard_package: Path
) -> None:
    shown = run(build / "tests/golden_test", FASTVLM_TEST_PACKAGE=str(standard_package))
    assert ", 0 failed" in shown


def test_cpp_client_answers_where_int8_products_saturate(
    build: Path, variants_package: Path, vectors: Path
) -> None:
    """The graphs open with the option that makes products exact, and answer as without it."""
    shown = run(
        build / "tests/vectors_test",
        FASTVLM_TEST_PACKAGE=str(variants_package),
        FASTVLM_TEST_VECTORS=str(vectors),
        FASTVLM_ONNX_INT8_SATURATES="1",
    )
    assert ", 0 failed" in shown


def test_cpp_readmes_example_is_the_program_that_runs(build: Path, variants_package: Path) -> None:
    readme = (CLIENT / "README.md").read_text("utf-8")
    (example,) = re.findall(r"```cpp\n(.*?)```", readme, re.DOTALL)
    assert example == (CLIENT / "example.cpp").read_text("utf-8")
    shown = run(build / "fastvlm-example", variants_package, PICTURES / "shapes.png")
    assert f"```\n{shown}```" in readme


def test_cpp_clients_probe_of_saturation_is_pythons_graph() -> None:
    """The graph in fastvlm.cpp: text in quotes, 2,048 weights of 127 between its two parts."""
    source = (CLIENT / "fastvlm.cpp").read_text("utf-8")
    function = source[source.index("std::string saturation_graph()") :]
    function = function[: function.index("\n}\n")]
    literals = re.findall(r'"((?:[^"\\]|\\.)*)"', function)
    text = "".join(literals).encode().decode("unicode_escape").encode("latin-1")
    head, tail = text[:88], text[88:]
    probe = (ROOT / "runtime/ort/saturation_probe.onnx").read_bytes()
    assert head + bytes([127]) * 2048 + tail == probe
