"""Packages for programs that run them without this project's runtime."""

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
Export = Callable[..., Path]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Export the built-in model; a package made elsewhere is named by a variable."""

    def export(variable: str, **options: object) -> Path:
        if made := os.environ.get(variable):
            return Path(made)
        from fastvlm_onnx.export.pipeline import export_package

        folder = tmp_path_factory.mktemp("exported") / "demo-onnx"
        export_package("demo", folder, **options)
        return folder

    return export


@pytest.fixture(scope="session")
def node_folder() -> Path:
    """Where `make test-clients` installs transformers.js."""
    folder = Path(__file__).parent / "transformers_js"
    if not (folder / "node_modules").is_dir():
        pytest.skip("transformers.js is not installed (make test-clients)")
    return folder


@pytest.fixture(scope="session")
def standard_package(exported: Export) -> Path:
    """The built-in model in fp32 with `--operators standard`."""
    return exported("FASTVLM_ONNX_TEST_STANDARD", operators="standard")


@pytest.fixture(scope="session")
def openvino_only() -> ModuleType:
    """examples/openvino_only.py, whose model takes graphs opened by any engine."""
    path = ROOT / "examples/openvino_only.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
