"""Jobs on Ray, run as a shell runs them, and the rows that they write."""

import json
import os
import subprocess
import sys
from pathlib import Path


def caption_on_ray(*arguments: object) -> "subprocess.Popen[str]":
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-m", "fastvlm_onnx", "caption", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def rows_in(folder: Path) -> list[dict]:
    """The rows of a destination, as a user's program reads them."""
    if folder.suffix == ".parquet":
        import pyarrow.parquet as pq

        return pq.read_table(folder).to_pylist()
    files = sorted(folder.glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]
