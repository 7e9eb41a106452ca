"""This project and the fastest other runtimes, with the same weights, on this machine.

    python benchmarks/side_by_side.py -o /tmp/table                  # 0.5b, 1024 pixels, 2 threads
    python benchmarks/side_by_side.py -o /tmp/table --size 1.5b --image-size 512 --rounds 5
    python benchmarks/side_by_side.py -o /tmp/table --quick          # a tiny model, to test

It makes a random checkpoint, installs the other runtimes into `.venv-peers`, converts the weights
for each, and measures every way in its own process. Every round runs all ways in the same order.
The table is written after each round. Run it on an idle machine. Converted files stay under --work
for the next run.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from peers import environment, plot
from peers.job import STEPS, Job, locked
from peers.ways import WAYS

from fastvlm_onnx.runtime.ort.hardware import processor

HERE = Path(__file__).resolve().parent
ENOUGH = 20  # lines of a failed process that are shown
IMAGE_SIZES = (1024, 768, 512)
QUICK_IMAGE_SIZE = 128
# Largest size of a work folder with one image size, in gigabytes.
FOLDER_GB = {"quick": 1, "0.5b": 16, "1.5b": 45}

# --- processes -----------------------------------------------------------------------------------


class ProcessError(Exception):
    """A conversion or a measurement failed. The message is its last lines of output."""


def run(action: str, module: str, job: Job, python: str | Path) -> Any:
    """Run a job in its own process and return its figures.

    Raises:
        ProcessError: the process failed.
    """
    quiet = {
        "PYTHONPATH": str(HERE),
        "OMP_NUM_THREADS": str(job.threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Compiled graphs are kept there; the first round makes them.
        "FASTVLM_ONNX_HOME": str(job.work / "home"),
    }
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        command = [str(python), "-m", "peers.process", action, module, job.to_json(), str(out)]
        done = subprocess.run(
            command, env=os.environ | quiet, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            lines = (done.stdout + done.stderr).splitlines()[-ENOUGH:]
            if done.returncode < 0:  # usually the system ended it for lack of memory
                lines.append(f"killed by signal {-done.returncode}")
            raise ProcessError("\n".join(lines))
        return json.loads(out.read_text())


def prepare(jobs: dict[str, Job], failures: dict[str, str]) -> None:
    """Make the files that the jobs need. A runtime that fails is recorded in `failures`.

    Raises:
        ProcessError: the checkpoint, the package or PyTorch's logits could not be made.
    """
    job = next(iter(jobs.values()))
    for module in ("checkpoint", "ours", "eager"):
        say(f"preparing {module}")
        run("convert", module, job, sys.executable)
    if builds := [name for name in jobs if WAYS[name].is_openvino_build]:
        say("preparing OpenVINO's build of ONNX Runtime")
        try:
            environment.install_openvino_build()
        except environment.InstallError as error:
            say(str(error))
            failures |= dict.fromkeys(builds, f"not installed: {last_line(error)}")
    peers = {name: WAYS[name].module for name in jobs if WAYS[name].is_peer}
    converters = {"openvino_model": "openvino_graphs", "genai": "genai"}
    for module in dict.fromkeys(peers.values()):
        say(f"preparing {converters[module]}")
        try:
            environment.install_peer(module)
            run("convert", converters[module], job, environment.PYTHON)
        except (environment.InstallError, ProcessError) as error:
            say(str(error))
            is_missing = isinstance(error, environment.InstallError)
            reason = "not installed" if is_missing else "could not be converted"
            failures |= {
                name: f"{reason}: {last_line(error)}" for name in peers if peers[name] == module
            }


def measure_round(
    jobs: dict[str, Job], figures: dict[str, list[Any]], failures: dict[str, str]
) -> None:
    """Measure every way once, so that a slow minute does not fall on all rounds of one way."""
    for name in jobs:
        if name in failures:
            continue
        say(name)
        way = WAYS[name]
        try:
            figures.setdefault(name, []).append(run("measure", way.module, jobs[name], way.python))
        except ProcessError as error:
            say(str(error))
            figures.pop(name, None)
            failures[name] = f"failed: {last_line(error)}"


def check_disk_space(args: argparse.Namespace) -> None:
    """Exit if the disk has too little room. Converters give no useful error on a full disk."""
    held = sum(path.stat().st_size for path in args.work.rglob("*") if path.is_file())
    missing = FOLDER_GB[args.size] * 1e9 - held - shutil.disk_usage(args.work).free
    if missing > 0:
        sys.exit(
            f"error: {args.work} may grow to {FOLDER_GB[args.size]} GB, and the disk lacks "
            f"{missing / 1e9:.0f} GB; free space, or name another folder with --work."
        )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def last_line(error: Exception) -> str:
    return next((line for line in reversed(str(error).splitlines()) if line.strip()), "no message")


# --- the table -----------------------------------------------------------------------------------


def summarise(found: list[Any]) -> dict[str, dict[str, float]]:
    """Return the median and minimum of every figure over all rounds and repeats."""
    summary = {}
    for name in found[0]:
        values: list[float] = []
        for figures in found:
            values += figures[name] if isinstance(figures[name], list) else [figures[name]]
        summary[name] = {"median": statistics.median(values), "minimum": min(values)}
    return summary


COLUMNS = {
    "vision ms": ("vision", 1e3, "{:.0f}"),
    "prefill ms": ("prefill", 1e3, "{:.0f}"),
    "first token ms": ("first_token", 1e3, "{:.0f}"),
    "ms/token": ("decode", 1e3, "{:.2f}"),
    "load s": ("load", 1, "{:.2f}"),
    "peak RSS MB": ("peak_rss_bytes", 1e-6, "{:.0f}"),
    "files MB": ("size_bytes", 1e-6, "{:.0f}"),
}
COSINES = {"cosine_image": "cosine image", "cosine_logits": "cosine logits"}


def table(summaries: dict[str, Any], failures: dict[str, str], names: list[str]) -> str:
    """Return the Markdown table: medians, minima in brackets, and cosines with PyTorch."""
    header = ["way", *COLUMNS, *COSINES.values()]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for name in names:
        if name in failures:
            cells = [failures[name].replace("|", "/"), *[""] * (len(header) - 2)]
        else:
            cells = []
            for key, scale, form in COLUMNS.values():
                median, minimum = (
                    form.format(summaries[name][key][kind] * scale)
                    for kind in ("median", "minimum")
                )
                is_time = key not in ("peak_rss_bytes", "size_bytes")
                cells.append(f"{median} ({minimum})" if is_time else median)
            cells += [f"{summaries[name][key]['minimum']:.6f}" for key in COSINES]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def report(
    args: argparse.Namespace, summaries: dict[str, Any], failures: dict[str, str], rounds: int
) -> str:
    """Return the Markdown page: the conditions, the table, and a description of each way."""
    first = Job("", args.work, args.image_size, args.threads, args.repeats)
    ways = "\n".join(f"- `{name}`: {WAYS[name].text}" for name in args.ways)
    return f"""# Side by side: {args.size}, {args.image_size} pixels, {args.threads} threads

{processor()}, {os.cpu_count()} cores; random weights of the true size.
The prompt has {first.prompt_tokens} positions. Figures are medians, with minima in brackets, over
{rounds} round(s) of {args.repeats} answer(s) after one to warm up. Each round is a new process.
Vision includes the projector. First token is vision, prefill and argmax. ms/token is the median of
{STEPS} tokens after the prompt. Load is measured with cached files and imported libraries. Cosines
compare image_features and the first logits with PyTorch's fp32. Random weights are the hardest case
for int4. The cosines show that the weights are the same, and not the accuracy of a trained model.

{table(summaries, failures, args.ways)}

{ways}
"""


def write_results(
    args: argparse.Namespace, figures: dict[str, list[Any]], failures: dict[str, str], rounds: int
) -> str:
    """Write table, plot and figures into the output folder, and return the text to print."""
    summaries = {name: summarise(figures[name]) for name in args.ways if name in figures}
    text = report(args, summaries, failures, rounds)
    stem = f"side-by-side.{args.size}.{args.image_size}.{args.threads}-threads"
    (args.output / f"{stem}.md").write_text(text, encoding="utf-8")
    if summaries:
        title = f"{args.size}, {args.image_size} pixels, {args.threads} threads, {processor()}"
        plot.draw_bars(title, summaries, args.output / f"{stem}.svg")
    everything = {"runs": figures, "summary": summaries, "failures": failures}
    (args.output / f"{stem}.json").write_text(json.dumps(everything, indent=2) + "\n")
    return json.dumps(everything) if args.json else text


# --- command line --------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the table")
    parser.add_argument("--size", choices=("0.5b", "1.5b"), default="0.5b")
    parser.add_argument("--image-size", type=int, choices=IMAGE_SIZES, default=IMAGE_SIZES[0])
    parser.add_argument("--ways", default=",".join(WAYS), help="with commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="timed answers in each round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("/tmp/fastvlm-side-by-side"))
    parser.add_argument("--quick", action="store_true", help="a tiny model, for a test")
    parser.add_argument("--json", action="store_true", help="print the figures, not the table")
    args = parser.parse_args()
    args.ways = args.ways.split(",")
    if unknown := [name for name in args.ways if name not in WAYS]:
        parser.error(f"--ways: {', '.join(unknown)} unknown; expected some of {', '.join(WAYS)}")
    if min(args.rounds, args.repeats, args.threads) < 1:
        parser.error("--rounds, --repeats and --threads must be 1 or more")
    if args.quick:
        args.size, args.image_size = "quick", QUICK_IMAGE_SIZE
    args.work = args.work.absolute() / args.size
    return args


def main() -> None:
    args = parse_arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    args.work.mkdir(parents=True, exist_ok=True)
    jobs = {
        name: Job(name, args.work, args.image_size, args.threads, args.repeats)
        for name in args.ways
    }
    figures: dict[str, list[Any]] = {}
    failures: dict[str, str] = {}
    # SIGTERM also ends the process that this run waits for.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with locked(args.work):
            check_disk_space(args)
            prepare(jobs, failures)
            for number in range(1, args.rounds + 1):
                say(f"round {number} of {args.rounds}")
                measure_round(jobs, figures, failures)
                text = write_results(args, figures, failures, number)
    except ProcessError as error:
        sys.exit(f"error: {error}")
    except BlockingIOError:
        sys.exit(
            f"error: {args.work} is in use by another comparison; wait until it has ended, or name "
            "another folder with --work."
        )
    print(text)


if __name__ == "__main__":
    main()
