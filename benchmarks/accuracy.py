"""Share of held-out questions that each variant of the built-in model answers correctly.

    python benchmarks/accuracy.py                       # every variant, 500 images of each kind
    python benchmarks/accuracy.py --precision int4 --number 100

A description is scored by attribute (the colour and shape of each place). Every other answer is
correct or wrong as a whole. PyTorch is not needed.
"""

import argparse
import tempfile
from pathlib import Path

import demo_data as data

import fastvlm_onnx
from fastvlm_onnx import FastVLM
from fastvlm_onnx.export.pipeline import export_package
from fastvlm_onnx.variants import CPU_VARIANTS


def share_right(model: FastVLM, kind: data.Kind, number: int) -> float:
    """Return the percentage of correct answers to `number` held-out questions of one kind."""
    right = total = 0
    for sample, question in data.held_out(kind, number):
        found = model.generate(sample.picture, question.prompt).text
        if kind == "describe":
            expected, given = data.attributes(question.answer), data.attributes(found)
            right += sum(a == b for a, b in zip(expected, given, strict=False))
            total += max(len(expected), len(given))
        else:
            right += found == question.answer
            total += 1
    return 100 * right / total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", default=",".join(CPU_VARIANTS))
    parser.add_argument("--number", type=int, default=500)
    args = parser.parse_args()
    precisions = args.precision.split(",")
    print(f"| % right of {args.number} | {' | '.join(data.KINDS)} |")
    print(f"|---|{'---|' * len(data.KINDS)}")
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "demo-onnx"
        export_package("demo", package, precisions=precisions)
        for precision in precisions:
            model = fastvlm_onnx.load(package, precision=precision)
            shares = [f"{share_right(model, kind, args.number):.1f}" for kind in data.KINDS]
            print(f"| {precision} | {' | '.join(shares)} |", flush=True)


if __name__ == "__main__":
    main()
