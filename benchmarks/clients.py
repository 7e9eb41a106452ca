"""Time and memory of another program that runs packages, beside the Python runtime.

    cmake --build build --target fastvlm-benchmark
    python benchmarks/clients.py build PACKAGE --variant fast
    python benchmarks/clients.py clients/javascript/benchmark.js PACKAGE --variant fast
    python benchmarks/clients.py clients/javascript/benchmark_browser.js PACKAGE --variant web
    python benchmarks/clients.py tests/clients/transformers_js/benchmark.mjs PACKAGE \
        --variant int4 --client-package FOLDER --client-variant q4
    python benchmarks/clients.py benchmarks/other_programs/genai_layout.py PACKAGE \
        --variant int4 --client-package FOLDER --python .venv-genai/bin/python
    python benchmarks/clients.py benchmarks/other_programs/openvino_alone.py PACKAGE \
        --variant int4 --python .venv-engines/bin/python

Both run in turns, each round in a process of its own: the same picture, prompt and number of
threads. A ratio compares the medians of all answers. The script stops where the answers have
different numbers of tokens, and says where their tokens differ.
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
NODE_SCRIPTS: Final = (".js", ".mjs")
# Name, key of a round's record, unit and factor to the unit.
ROWS: Final = (
    ("load", "load", "s", 1.0),
    ("first token", "first_token", "ms", 1e3),
    ("one token", "one_token", "ms", 1e3),
    ("peak memory", "peak_rss_bytes", "MB", 1e-6),
)


def measure_python(case: list[str]) -> dict[str, Any]:
    """Answer in this process, as every client does.

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
    asked = [str(arguments.picture), PROMPT]
    asked += map(str, (arguments.max_new_tokens, arguments.warmup, arguments.repeats))
    ours = [str(arguments.package), arguments.variant]
    theirs = [
        str(arguments.client_package or arguments.package),
        arguments.client_variant or arguments.variant,
    ]
    commands = {
        "Python": [sys.executable, __file__, "--case", *ours, *asked],
        "/".join(arguments.client.parts[-2:]): [*_program(arguments), *theirs, *asked],
    }
    rounds: dict[str, list[dict[str, Any]]] = {client: [] for client in commands}
    for _ in range(arguments.rounds):
        for client, command in commands.items():
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{client} failed: {done.stderr.strip()}")
            rounds[client].append(json.loads(done.stdout.splitlines()[-1]))
    answers = [record["token_ids"] for records in rounds.values() for record in records]
    if any(len(answer) != len(answers[0]) for answer in answers):
        sys.exit("the answers have different lengths; their times cannot be compared.")
    _print_table(arguments, rounds, answers)


def _program(arguments: argparse.Namespace) -> list[str]:
    """The command that runs the client, up to the arguments of `measure_python`."""
    client = arguments.client
    if client.is_dir():
        return [str(client / "fastvlm-benchmark")]
    return ["node" if client.suffix in NODE_SCRIPTS else arguments.python, str(client)]


def _print_table(
    arguments: argparse.Namespace, rounds: dict[str, list[dict[str, Any]]], answers: list[list[int]]
) -> None:
    are_equal = all(answer == answers[0] for answer in answers)
    print(
        f"{arguments.package.name}, {arguments.variant}, {len(answers[0])} tokens, "
        f"{'equal' if are_equal else 'NOT EQUAL'}, {processor()}, "
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
    parser.add_argument("client", type=Path, help="the C++ client's build folder, or a script")
    parser.add_argument("package", type=Path)
    parser.add_argument("--variant", default="fast")
    parser.add_argument("--client-package", type=Path, help="a package in the client's layout")
    parser.add_argument("--client-variant", help="the client's name of the variant")
    parser.add_argument("--python", default=sys.executable, help="runs a client in Python")
    parser.add_argument("--picture", type=Path, default=SAMPLE_PICTURE)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    return argparse.Namespace(**vars(parser.parse_args()), case=None)


if __name__ == "__main__":
    main()
