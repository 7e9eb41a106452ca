"""Search for the rounding of int4, int8 and fast on a real language model, simulated in PyTorch.

    python benchmarks/quantisation_search.py pack MODEL.gguf weights.bin
    python benchmarks/quantisation_search.py tokens CHECKPOINT prompts.json texts.json tokens.json
    python benchmarks/quantisation_search.py search weights.bin tokens.json -o results.jsonl
    python benchmarks/quantisation_search.py report results.jsonl -o docs/benchmarks

The model's greedy answers in float32 are forced on every way to round, and the next tokens'
distributions are compared. A row is written as soon as it is measured. A second run goes on where
the first stopped. `search` needs PyTorch, numpy and gguf. `--device cuda` measures
most rows in 2 to 10 seconds.
"""

import argparse
import json
from pathlib import Path

from rounding.bench import run_search, self_test
from rounding.report import write_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    pack = commands.add_parser("pack", help="keep the decoder's tensors of a GGUF file")
    pack.add_argument("gguf", type=Path)
    pack.add_argument("out", type=Path)
    tokens = commands.add_parser("tokens", help="turn prompts and texts into token ids")
    for name in ("checkpoint", "prompts", "texts", "out"):
        tokens.add_argument(name, type=Path)
    search = commands.add_parser("search", help="measure the rows")
    search.add_argument("weights", type=Path, help="file of `pack`, or a checkpoint's folder")
    search.add_argument("tokens", type=Path)
    search.add_argument("-o", "--output", type=Path, required=True)
    search.add_argument("--device", default="cpu")
    search.add_argument("--minutes", type=float, default=9)
    search.add_argument("--prompts", type=int, default=0, help="a part of the prompts; 0 for all")
    search.add_argument("--steps", type=int, default=48)
    search.add_argument("--texts", type=int, default=64, help="calibration texts at most")
    search.add_argument("--batch", type=int, default=60_000, help="padded tokens at a time")
    search.add_argument("--only", nargs="*", help="parts of the names of rows")
    search.add_argument("--rows", type=Path, help="JSON list of further rows, measured first")
    commands.add_parser("self-test", help="run everything on two small layers")
    report = commands.add_parser("report", help="write the table")
    report.add_argument("results", type=Path)
    report.add_argument("-o", "--output", type=Path, required=True)
    report.add_argument("--subset", type=Path, help="rows of a part of the prompts")
    args = parser.parse_args()
    if args.command == "pack":
        from rounding.weights import pack as pack_weights

        pack_weights(args.gguf, args.out)
    elif args.command == "tokens":
        from rounding.tokens import tokenise

        found = tokenise(args.checkpoint, args.prompts, args.texts)
        args.out.write_text(json.dumps(found))
    elif args.command == "search":
        run_search(args)
    elif args.command == "report":
        write_report(args.results, args.output, args.subset)
    else:
        self_test()


if __name__ == "__main__":
    main()
