"""Time of a short answer in a new process: start, imports, load, answer, exit.

    python benchmarks/startup.py                # the built-in model, 8 tokens, 15 runs
    python benchmarks/startup.py --model DIR

Prints medians and minima in seconds. Run it on an idle machine.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PICTURE = Path(__file__).resolve().parent.parent / "fastvlm_onnx/demo/pictures/shapes.png"
IMPORTS = """
import time
began = time.perf_counter()
import fastvlm_onnx.cli, fastvlm_onnx.runtime.model, onnxruntime
print(time.perf_counter() - began)
"""


def seconds_of(command: list[str]) -> tuple[float, str]:
    """Return the wall time of a process in seconds, and its standard output."""
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.perf_counter() - began, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="an exported folder")
    parser.add_argument("--runs", type=int, default=15)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or Path(folder) / "demo-onnx"
        python = [sys.executable, "-m", "fastvlm_onnx"]
        if args.model is None:
            seconds_of([*python, "export", "demo", "-o", str(model)])
        answer = [*python, "generate", str(PICTURE), "Describe the image.", "--model", str(model)]
        answer += ["--max-new-tokens", "8", "--json"]
        rows: dict[str, list[float]] = {"process": [], "python": [], "imports": []}
        for run in range(args.runs + 1):
            found = {
                "process": seconds_of(answer),
                "python": seconds_of([sys.executable, "-c", "pass"]),
                "imports": seconds_of([sys.executable, "-c", IMPORTS]),
            }
            if run == 0:
                continue  # the first run reads files into the page cache
            timings = json.loads(found["process"][1])["timings"]
            rows["process"].append(found["process"][0])
            rows["python"].append(found["python"][0])
            rows["imports"].append(float(found["imports"][1]))
            for name in ("load", "preprocess", "vision", "prefill", "first_token", "decode"):
                rows.setdefault(name, []).append(timings[name])
    print(f"{'seconds':12s} {'median':>8s} {'minimum':>8s}")
    for name, values in rows.items():
        print(f"{name:12s} {statistics.median(values):8.3f} {min(values):8.3f}")


if __name__ == "__main__":
    main()
