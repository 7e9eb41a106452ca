"""docs/export-api.md: its program runs, and it describes every argument."""

import re
import subprocess
import sys
from collections.abc import Callable
from inspect import signature
from pathlib import Path

import pytest

from fastvlm_onnx.export.pipeline import export_package
from fastvlm_onnx.export.verification.verify import verify_package

ROOT = Path(__file__).resolve().parents[2]


PAGE = (ROOT / "docs/export-api.md").read_text("utf-8")


@pytest.mark.parametrize("function", [export_package, verify_package])
def test_the_page_describes_every_argument(function: Callable[..., object]) -> None:
    section = PAGE.split(f"## {function.__name__}\n")[1].split("\n## ")[0]
    table = section.split("| argument | meaning |")[1].split("\n\n")[0]
    described = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert described == list(signature(function).parameters)
    assert set(re.findall(r"(\w+)=", section.split(")`")[0])) <= set(described)


def test_the_python_of_the_export_page_runs(tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["['fp32', 'int8']", "128 311", "[]"]
