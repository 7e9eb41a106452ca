"""Fixtures of both sides' tests: exported packages of the built-in model, and its images."""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import fastvlm_onnx
from fastvlm_onnx import FastVLM
from fastvlm_onnx.telemetry import disable_telemetry
from fastvlm_onnx.variants import CPU_VARIANTS

# Some tests import ONNX Runtime before the library does.
disable_telemetry()

ROOT = Path(__file__).resolve().parent.parent
DEMO = Path(fastvlm_onnx.__file__).parent / "demo"
PICTURES = DEMO / "pictures"
OLD_PACKAGE = ROOT / "tests/packages/0.1.0-fast.zip"


def pytest_configure() -> None:
    """Give each of several processes of pytest-xdist its share of the cores.

    ONNX Runtime and PyTorch would otherwise have threads for all cores in each process, and the
    threads would wait for each other.
    """
    if (name := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
        number, count = int(name.removeprefix("gw")), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        if share := sorted(os.sched_getaffinity(0))[number::count]:
            os.sched_setaffinity(0, share)


@pytest.fixture(autouse=True)
def user_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands remember the last export in a temporary folder, never in the user's home."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("FASTVLM_ONNX_HOME", str(folder))
    monkeypatch.delenv("FASTVLM_ONNX_MODEL", raising=False)
    return folder


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model, exported; made elsewhere where the export side is not installed."""
    if made := os.environ.get("FASTVLM_ONNX_TEST_PACKAGE"):
        return Path(made)
    from fastvlm_onnx.export.pipeline import export_package

    folder = tmp_path_factory.mktemp("exported") / "demo-onnx"
    export_package("demo", folder)
    return folder


@pytest.fixture(scope="session")
def variants_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model in every variant for CPUs, exported like `package`."""
    if made := os.environ.get("FASTVLM_ONNX_TEST_VARIANTS"):
        return Path(made)
    from fastvlm_onnx.export.pipeline import export_package

    folder = tmp_path_factory.mktemp("exported") / "demo-variants"
    export_package("demo", folder, precisions=CPU_VARIANTS)
    return folder


@pytest.fixture(scope="session")
def model(package: Path) -> FastVLM:
    return fastvlm_onnx.load(package)


@pytest.fixture(scope="session")
def questions() -> dict[str, dict[str, str]]:
    """File name of each sample picture -> prompt -> the right answer."""
    return json.loads((PICTURES / "questions.json").read_text("utf-8"))


@pytest.fixture(scope="session")
def picture(questions: dict[str, dict[str, str]]) -> Path:
    """A sample picture that is not square."""
    return PICTURES / list(questions)[-1]


@pytest.fixture(scope="session")
def built_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our wheel, built from a copy so that the checkout stays as it is."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    for folder in ("fastvlm_onnx", "export", "runtime", "clients/javascript"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and not {"__pycache__", "node_modules"} & set(path.parts):
                copy = source / path.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
    out = source / "wheels"
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(out), "."]
    done = subprocess.run(build, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="session")
def old_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model as fastvlm-onnx 0.1.0 exported it (`--precision fast`)."""
    folder = tmp_path_factory.mktemp("old") / "demo-onnx"
    zipfile.ZipFile(OLD_PACKAGE).extractall(folder)
    return folder


@pytest.fixture
def copied_package(package: Path, tmp_path: Path) -> Path:
    """A package that a test may damage."""
    folder = tmp_path / "copied-onnx"
    folder.mkdir()
    for file in package.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture
def edit_json() -> Callable[[Path, Callable[[dict], None]], None]:
    def edit(path: Path, change: Callable[[dict], None]) -> None:
        content = json.loads(path.read_text("utf-8"))
        change(content)
        path.write_text(json.dumps(content), encoding="utf-8")

    return edit
