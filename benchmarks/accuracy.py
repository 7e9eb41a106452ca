"""Share of held-out questions that each variant of the built-in model answers correctly.

    python benchmarks/accuracy.py                       # every variant, 500 images of each kind
    python benchmarks/accuracy.py --precision int4 --number 100

A description is scored by F1 of its (color, shape) pairs. Every other answer is right or wrong as a
whole. PyTorch is not needed; the fonts of demo_data/words.py are.
"""

import argparse
import tempfile
from pathlib import Path

from demo_data.answers import KINDS, Kind
from demo_data.questions import held_out
from demo_data.scoring import score

import fastvlm_onnx
from fastvlm_onnx import FastVLM
from fastvlm_onnx.export.pipeline import export_package
from fastvlm_onnx.variants import CPU_VARIANTS


def share_right(model: FastVLM, kind: Kind, number: int) -> float:
    """Return the score in percent of the answers to `number` held-out questions of one kind."""
    scores = [
        score(question, model.generate(sample.picture, question.prompt).text)
        for sample, question in held_out(kind, number)
    ]
    return 100 * sum(scores) / len(scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", default=",".join(CPU_VARIANTS))
    parser.add_argument("--checkpoint", default="demo", help="another checkpoint of this model")
    parser.add_argument("--number", type=int, default=500)
    args = parser.parse_args()
    precisions = args.precision.split(",")
    print(f"| % right of {args.number} | {' | '.join(KINDS)} |")
    print(f"|---|{'---|' * len(KINDS)}")
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "demo-onnx"
        export_package(args.checkpoint, package, precisions=precisions)
        for precision in precisions:
            model = fastvlm_onnx.load(package, precision=precision)
            shares = [f"{share_right(model, kind, args.number):.1f}" for kind in KINDS]
            print(f"| {precision} | {' | '.join(shares)} |", flush=True)


if __name__ == "__main__":
    main()
