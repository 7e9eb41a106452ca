"""The Python of docs/export-api.md runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.xfail(strict=True, reason="fastvlm_onnx.export has no public names yet")
def test_the_python_of_the_export_page_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs/export-api.md").read_text("utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["['fp32', 'int8']", "128 264", "[]"]
