"""The first token of LLaVA-OneVision-0.5B against FastVLM-0.5B's, on this machine.

    python benchmarks/headline.py -o docs/benchmarks            # 20 minutes; 12 GB of disk
    python benchmarks/headline.py -o /tmp/table --prepare       # convert only

FastVLM's authors report a first token 85 times sooner than LLaVA-OneVision-0.5B's, on other
hardware with other runtimes. This measures both models in PyTorch, then each as fast as it was made
to run here. Both language models are Qwen2-0.5B with the same random weights. The vision towers
have the published sizes. Work files are those of side_by_side.py, and stay for the next run.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from peers import environment, plot
from peers.job import TOKENS_AFTER, TOKENS_BEFORE, Job, locked
from peers.ways import WAYS, Way
from side_by_side import ProcessError, run, say, summarise

from fastvlm_onnx.runtime.ort.hardware import processor

FASTVLM_SIZE, ONEVISION_SIZE = 1024, 1152
ONEVISION_TOKENS = 729 + 81 * 82  # the overview, and nine crops with a token at each row's end
ONEVISION = {
    "onevision-pytorch": Way(
        "onevision", False, "LLaVA-OneVision-0.5B, PyTorch fp32: transformers' code"
    ),
    "onevision-openvino": Way(
        "onevision_openvino",
        True,
        "LLaVA-OneVision-0.5B, OpenVINO: vision at its defaults (bf16 if the processor has it), "
        "int4 language model in groups of 128",
    ),
}
FASTVLM = {name: WAYS[name] for name in ("pytorch", "openvino-int4", "ours-fast")}
ALL_WAYS = ONEVISION | FASTVLM
RATIOS = (
    ("onevision-pytorch", "pytorch", "the models alone: both in PyTorch"),
    ("onevision-openvino", "openvino-int4", "both on OpenVINO"),
    ("onevision-openvino", "ours-fast", "LLaVA-OneVision on OpenVINO, FastVLM with this project"),
    ("onevision-pytorch", "ours-fast", "LLaVA-OneVision in PyTorch, FastVLM with this project"),
)
PAPER = {"vision": (2721.4, 116.3), "prefill": (11402.4, 50.5)}  # ms, LLaVA-OneVision and FastVLM


def prepare(jobs: dict[str, Job]) -> None:
    """Make the checkpoint, the package and the files of both runtimes.

    Raises:
        ProcessError: a conversion failed.
        InstallError: OpenVINO could not be installed.
    """
    fastvlm, onevision = jobs["ours-fast"], jobs["onevision-pytorch"]
    steps = [(name, fastvlm, sys.executable) for name in ("checkpoint", "ours", "eager")]
    steps.append(("onevision", onevision, sys.executable))
    environment.install_peer("openvino_model")
    steps.append(("openvino_graphs", fastvlm, str(environment.PYTHON)))
    steps.append(("onevision_openvino", onevision, str(environment.PYTHON)))
    for module, job, python in steps:
        say(f"preparing {module}")
        run("convert", module, job, python)


def report(args: argparse.Namespace, summaries: dict[str, Any], rounds: int) -> str:
    """Return the Markdown page: conditions, figures, ratios, and the paper's conditions."""
    rows = [
        f"| {name} | " + " | ".join(cells(summaries[name])) + " |"
        for name in ALL_WAYS
        if name in summaries
    ]
    first = {name: summary["first_token"]["median"] for name, summary in summaries.items()}
    ratios = [f"| {text} | {first[a] / first[b]:.1f} |" for a, b, text in RATIOS]
    paper = [sum(PAPER[part][place] for part in PAPER) for place in (0, 1)]
    ways = "\n".join(f"- `{name}`: {way.text}" for name, way in ALL_WAYS.items())
    positions = ONEVISION_TOKENS + TOKENS_BEFORE + TOKENS_AFTER
    return f"""# First token: LLaVA-OneVision-0.5B against FastVLM-0.5B

{processor()}, {os.cpu_count()} cores, {args.threads} threads; random weights of the true sizes.
Figures are medians over {rounds} round(s) of {args.repeats} answer(s) after one to warm up. Each
round is a new process. A square picture of {ONEVISION_SIZE} pixels is {positions:,} positions of
LLaVA-OneVision's prompt (its anyres settings: an overview and nine crops of 384 pixels). A picture
of {FASTVLM_SIZE} pixels is {fastvlm_positions()} positions of FastVLM's. Cosines compare image
features with those of the same model in PyTorch.

| way | vision ms | prefill ms | first token ms | ms a token | peak MB | cosine |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}

| how many times sooner FastVLM's first token is | |
|---|---|
{chr(10).join(ratios)}
| the paper: {paper[0]:,.0f} and {paper[1]:,.0f} ms | {paper[0] / paper[1]:.0f} |

The paper's figures are of an Apple M1 Max: vision encoders in Core ML on the Neural Engine,
language models in MLX float16 on the GPU, {ONEVISION_TOKENS - 81:,} and 256 image tokens.

{ways}
"""


def fastvlm_positions() -> int:
    return Job("", Path(), FASTVLM_SIZE, 1, 1).prompt_tokens


def cells(summary: dict[str, dict[str, float]]) -> list[str]:
    milliseconds = [
        f"{summary[name]['median'] * 1e3:,.0f}" for name in ("vision", "prefill", "first_token")
    ]
    token, peak = summary["decode"]["median"], summary["peak_rss_bytes"]["median"]
    cosine = summary["cosine_image"]["minimum"]
    return [*milliseconds, f"{token * 1e3:.1f}", f"{peak / 1e6:,.0f}", f"{cosine:.4f}"]


def write_results(args: argparse.Namespace, figures: dict[str, list[Any]], rounds: int) -> str:
    summaries = {name: summarise(found) for name, found in figures.items()}
    text = report(args, summaries, rounds)
    (args.output / "headline.md").write_text(text, encoding="utf-8")
    (args.output / "headline.json").write_text(json.dumps(figures, indent=2) + "\n")
    title = f"LLaVA-OneVision-0.5B and FastVLM-0.5B, {args.threads} threads, {processor()}"
    plot.draw_bars(title, summaries, args.output / "headline.svg")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the table")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1, help="timed answers in each round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("/tmp/fastvlm-side-by-side"))
    parser.add_argument("--prepare", action="store_true", help="convert, and measure nothing")
    args = parser.parse_args()
    if min(args.rounds, args.repeats, args.threads) < 1:
        parser.error("--rounds, --repeats and --threads must be 1 or more")
    args.output.mkdir(parents=True, exist_ok=True)
    work = args.work.absolute() / "0.5b"
    work.mkdir(parents=True, exist_ok=True)
    jobs = {
        name: Job(
            name,
            work,
            ONEVISION_SIZE if name in ONEVISION else FASTVLM_SIZE,
            args.threads,
            args.repeats,
        )
        for name in ALL_WAYS
    }
    figures: dict[str, list[Any]] = {}
    try:
        with locked(work):
            prepare(jobs)
            if args.prepare:
                return
            for number in range(1, args.rounds + 1):
                for name, job in jobs.items():
                    say(f"round {number} of {args.rounds}: {name}")
                    way = ALL_WAYS[name]
                    figures.setdefault(name, []).append(run("measure", way.module, job, way.python))
                text = write_results(args, figures, number)
    except (ProcessError, environment.InstallError) as error:
        sys.exit(f"error: {error}")
    except BlockingIOError:
        sys.exit(f"error: {work} is in use by another comparison; name another with --work.")
    print(text)


if __name__ == "__main__":
    main()
