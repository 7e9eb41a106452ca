"""The Python API of the export side: its names, what importing it costs, and its one name."""

import subprocess
import sys
from pathlib import Path

import pytest

import fastvlm_onnx.export
from fastvlm_onnx.export.pipeline import export_package

ROOT = Path(__file__).resolve().parents[2]


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code with the repository's root as the current folder, which Python imports from."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_public_names_are_pinned() -> None:
    assert fastvlm_onnx.export.__all__ == [
        "Checkpoint",
        "export_package",
        "open_checkpoint",
        "verify_package",
    ]
    assert dir(fastvlm_onnx.export) == fastvlm_onnx.export.__all__


def test_every_public_name_can_be_imported() -> None:
    for name in fastvlm_onnx.export.__all__:
        assert getattr(fastvlm_onnx.export, name).__name__ == name
    assert fastvlm_onnx.export.export_package is export_package
    with pytest.raises(AttributeError, match="has no attribute 'export'"):
        _ = fastvlm_onnx.export.export


def test_importing_the_package_imports_no_graph_library() -> None:
    heavy = "{'numpy', 'onnx', 'onnx_ir', 'onnxscript', 'torch'}"
    done = run_python(f"import sys, fastvlm_onnx.export; assert not {heavy} & sys.modules.keys()")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("side", ["export", "runtime"])
def test_a_side_cannot_be_imported_under_its_folder_s_name(side: str) -> None:
    done = run_python(f"import {side}")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"ImportError: import fastvlm_onnx.{side}, not {side}"
    assert run_python(f"import fastvlm_onnx.{side}").returncode == 0
