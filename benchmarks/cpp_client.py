"""Time and memory of the C++ or the JavaScript client beside the Python runtime, on one package.

    cmake --build build --target fastvlm-benchmark
    python benchmarks/cpp_client.py build PACKAGE --variant fast
    python benchmarks/cpp_client.py clients/javascript/benchmark.js PACKAGE --variant fast

Both run in turns, each round in a process of its own: the same variant, picture, prompt and number
of threads. A ratio compares the medians of all answers. The script stops where token ids differ.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

import fastvlm_onnx
from fastvlm_onnx.runtime.ort.hardware import peak_rss_bytes, processor
from fastvlm_onnx.samples import SAMPLE_PICTURE

PROMPT: Final = "Describe the image."
# Name, key of a round's record, unit and factor to the unit.
ROWS: Final = (
    ("load", "load", "s", 1.0),
    ("first token", "first_token", "ms", 1e3),
    ("one token", "one_token", "ms", 1e3),
    ("peak memory", "peak_rss_bytes", "MB", 1e-6),
)


def measure_python(case: list[str]) -> dict[str, Any]:
    """Answer in this process, as fastvlm-benchmark does.

    Args:
        case: package, variant, picture, prompt, max_new_tokens, warmup and repeats.
    """
    package, variant, picture, prompt, *numbers = case
    max_new_tokens, warmup, repeats = map(int, numbers)
    found: dict[str, Any] = {"first_token": [], "one_token": []}
    with fastvlm_onnx.load(package, precision=variant, providers="cpu") as model:
        for i in range(warmup + repeats):
            answer = model.generate(picture, prompt, max_new_tokens=max_new_tokens)
            found |= {"load": answer.timings.load, "token_ids": answer.token_ids}
            if i >= warmup:
                found["first_token"].append(answer.timings.first_token)
                found["one_token"].append(1 / answer.timings.tokens_per_second)
    return found | {"peak_rss_bytes": peak_rss_bytes()}


def main() -> None:
    """Run the rounds and print a table in Markdown."""
    arguments = _arguments()
    if arguments.case:
        print(json.dumps(measure_python(arguments.case)))
        return
    case = [str(arguments.package), arguments.variant, str(arguments.picture), PROMPT]
    case += map(str, (arguments.max_new_tokens, arguments.warmup, arguments.repeats))
    is_script = arguments.client.suffix == ".js"
    other = (
        {"Node": ["node", str(arguments.client), *case]}
        if is_script
        else {"C++": [str(arguments.client / "fastvlm-benchmark"), *case]}
    )
    commands = {"Python": [sys.executable, __file__, "--case", *case], **other}
    rounds: dict[str, list[dict[str, Any]]] = {client: [] for client in commands}
    for _ in range(arguments.rounds):
        for client, command in commands.items():
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{client} failed: {done.stderr.strip()}")
            rounds[client].append(json.loads(done.stdout))
    answers = [record["token_ids"] for records in rounds.values() for record in records]
    if any(answer != answers[0] for answer in answers):
        sys.exit("the clients drew different tokens; their times cannot be compared.")
    _print_table(arguments, rounds, len(answers[0]))


def _print_table(
    arguments: argparse.Namespace, rounds: dict[str, list[dict[str, Any]]], tokens: int
) -> None:
    print(
        f"{arguments.package.name}, {arguments.variant}, {tokens} tokens, {processor()}, "
        f"{arguments.rounds} rounds of {arguments.repeats} answers\n"
    )
    _, other = rounds
    print(f"| | Python | {other} | {other} / Python |\n|---|---|---|---|")
    for name, key, unit, factor in ROWS:
        python, client = (_median(records, key) for records in rounds.values())
        shown = f"{python * factor:.3g} {unit} | {client * factor:.3g} {unit}"
        print(f"| {name} | {shown} | {client / python:.2f} |")


def _median(records: list[dict[str, Any]], key: str) -> float:
    """The median of a figure over all rounds, and over all answers where each has its own."""
    return float(np.median([record[key] for record in records]))


def _arguments() -> argparse.Namespace:
    if "--case" in sys.argv:
        return argparse.Namespace(case=sys.argv[sys.argv.index("--case") + 1 :])
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("client", type=Path, help="the C++ client's build folder, or benchmark.js")
    parser.add_argument("package", type=Path)
    parser.add_argument("--variant", default="fast")
    parser.add_argument("--picture", type=Path, default=SAMPLE_PICTURE)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    return argparse.Namespace(**vars(parser.parse_args()), case=None)


if __name__ == "__main__":
    main()
