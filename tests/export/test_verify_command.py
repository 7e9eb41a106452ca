"""`verify` and `export --verify` as a shell sees them, and the measurements in the package."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
from click.testing import CliRunner

from fastvlm_onnx import InputError
from fastvlm_onnx.agreement import Agreement, Tolerance, agreement_table
from fastvlm_onnx.cli import cli
from fastvlm_onnx.export.pipeline import export_package
from fastvlm_onnx.export.verification.verify import verify_package
from fastvlm_onnx.package import read_manifest
from fastvlm_onnx.package_files import check_files
from fastvlm_onnx.runtime.ort.hardware import processor, processor_features

STAGES = ["pixel_values", "image_hidden_states", "image_features", "logits"]


# --- export --verify -----------------------------------------------------------------------------


def test_export_writes_what_was_measured_into_manifest_and_card(tmp_path: Path) -> None:
    folder = tmp_path / "onnx"
    manifest = export_package("demo", folder, verify=verify_package)
    assert read_manifest(folder) == manifest
    check_files(folder, list(manifest.files), manifest)
    assert list(manifest.measured) == ["fp32"]
    card = (folder / "README.md").read_text("utf-8")
    assert agreement_table(manifest.measured) in card
    measured = manifest.measured["fp32"]
    assert (measured.processor, measured.processor_features) == (processor(), processor_features())
    assert measured.onnxruntime == onnxruntime.__version__
    line = f"ONNX Runtime {measured.onnxruntime}: fp32."
    assert f"Measured on {measured.processor}" in card
    assert line in card
    shown = run("inspect", folder).stdout
    assert f"Measured on {measured.processor}" in shown
    assert line in shown


def test_the_card_says_when_agreement_was_not_measured(package: Path) -> None:
    assert read_manifest(package).measured == {}
    card = (package / "README.md").read_text("utf-8")
    assert "Agreement with PyTorch was not measured (fp32)." in card


def test_export_verify_keeps_a_package_outside_tolerance_and_exits_with_1(
    tmp_path: Path, set_tolerance: Callable[[Tolerance], None], user_folder: Path
) -> None:
    set_tolerance(Tolerance(1e-9, 1.0, 0.0, 1.0))
    folder = tmp_path / "onnx"
    done = CliRunner().invoke(cli, ["export", "demo", "-o", str(folder), "--verify"])
    assert (done.exit_code, done.stdout) == (1, "")
    lines = done.stderr.splitlines()
    assert lines[0] == f"wrote {folder}"
    assert lines[-1].startswith("outside tolerance: fp32: image_hidden_states: relative error ")
    assert "fp32: outside tolerance: " in (folder / "README.md").read_text("utf-8")
    assert not list(user_folder.iterdir())  # not what `generate` takes from now on


def test_export_verify_prints_the_measures_of_verify(tmp_path: Path, user_folder: Path) -> None:
    folder = tmp_path / "onnx"
    done = CliRunner().invoke(cli, ["export", "demo", "-o", str(folder), "--verify"])
    assert done.exit_code == 0
    shown = agreement_table(read_manifest(folder).measured)
    for line in done.stderr.splitlines()[1:]:
        assert line in shown
    assert "| KL divergence, mean | 99th percentile | largest | same first choice |" in done.stderr
    steps = read_manifest(folder).measured["fp32"].steps
    assert f"- fp32 changed no first choice of {steps}." in done.stderr.splitlines()


def test_export_writes_nothing_when_verification_raises(tmp_path: Path) -> None:
    def fail(folder: Path, _: object) -> Agreement:
        assert read_manifest(folder).variants  # whole but for its name
        raise InputError("no")

    with pytest.raises(InputError):
        export_package("demo", tmp_path / "onnx", verify=fail)
    assert not list(tmp_path.iterdir())


# --- the command ---------------------------------------------------------------------------------


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastvlm_onnx", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)


def test_the_command_exits_with_1_and_names_the_stage(
    scale_demo: Callable[[str], Path], tmp_path: Path
) -> None:
    export_package(scale_demo("model.mm_projector.0.weight"), tmp_path / "onnx")
    done = run("verify", tmp_path / "onnx", "demo")
    assert done.returncode == 1
    assert done.stdout.startswith("| precision | vision encoder: relative error ")
    assert "- fp32: outside tolerance: image_features: relative error " in done.stdout
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("outside tolerance: fp32: image_features: relative error ")


def test_the_command_prints_one_json_object(package: Path, picture: Path) -> None:
    done = run("verify", package, "demo", "--picture", picture, "--prompt", "Why?", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert list(found) == ["outside_tolerance", "variants"]
    assert [row["stage"] for row in found["variants"]["fp32"]["stages"]] == STAGES


def test_without_torch_the_error_names_the_command(package: Path) -> None:
    code = f"""
import sys
sys.modules["torch"] = None  # importing it now fails, as where it is not installed
sys.argv = ["fastvlm-onnx", "verify", {str(package)!r}, "demo"]
from fastvlm_onnx.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert '(torch); run `pip install "fastvlm-onnx[verify]"`' in done.stderr
