"""Time and memory of conversations and batches. Each figure is measured in its own process.

    python benchmarks/library.py DIR -o docs/benchmarks          # about 5 minutes for the 0.5B

Every answer has --new-tokens tokens, since end tokens are ignored. Run it on an idle machine.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime

import fastvlm_onnx
from fastvlm_onnx import FastVLM
from fastvlm_onnx.package import read_manifest
from fastvlm_onnx.runtime.ort.hardware import peak_rss_bytes, processor

PICTURES = Path(fastvlm_onnx.__file__).parent / "demo/pictures"
PROMPT = "Describe the image."
BATCHES = (1, 2, 4, 8)
PRECISIONS = ("int4", "fast", "int8")


def load(folder: str, precision: str, **options: object) -> FastVLM:
    model = fastvlm_onnx.load(folder, precision=precision, providers="cpu", **options)
    endless = replace(model.manifest.decoder, eos_token_ids=[])
    model.manifest = replace(model.manifest, decoder=endless)
    return model


def pictures(count: int) -> list[np.ndarray]:
    """Return `count` different images of noise, uint8 [480, 640, 3]."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (480, 640, 3), np.uint8) for _ in range(count)]


def chat(folder: str, precision: str, new_tokens: int, repeats: int) -> dict[str, float]:
    """Measure the seconds to the first token of the first and second question about an image."""
    model = load(folder, precision, image_cache_bytes=0)
    times: list[tuple[float, float]] = []
    for _ in range(repeats + 1):
        with model.chat() as chat:
            first = chat.ask(PROMPT, PICTURES / "shapes.png", max_new_tokens=new_tokens)
            second = chat.ask("How many shapes do you see?", max_new_tokens=new_tokens)
        times.append((first.timings.first_token, second.timings.first_token))
    first_seconds, second_seconds = (median(column) for column in zip(*times[1:], strict=True))
    return {"first": first_seconds, "second": second_seconds}


def batch(folder: str, precision: str, new_tokens: int, repeats: int) -> dict[str, float]:
    """Measure tokens a second after the first token of each answer, by batch size."""
    model = load(folder, precision)
    features = [model.encode_image(picture) for picture in pictures(max(BATCHES))]
    rates = {}
    for size in BATCHES:
        found = []
        for _ in range(repeats + 1):
            answers = model.generate_batch(features[:size], PROMPT, max_new_tokens=new_tokens)
            # All answers decode together once the last answer has its first token.
            together = min(answer.timings.decode for answer in answers)
            found.append(size * (new_tokens - 1) / together)
        rates[str(size)] = median(found[1:])
    return rates


def memory(folder: str, precision: str, new_tokens: int, repeats: int) -> dict[str, float]:
    """Measure resident bytes: after loading, idle after answers, and at the peak."""
    del repeats
    model = load(folder, precision, lazy_vision=bool(os.environ.get("LAZY")))
    loaded = rss_bytes()
    for picture in pictures(2):
        model.generate(picture, PROMPT, max_new_tokens=new_tokens)
    return {"loaded": loaded, "idle": rss_bytes(), "peak": peak_rss_bytes() or 0}


def threads(folder: str, precision: str, new_tokens: int, repeats: int) -> dict[str, float]:
    """Measure the peak of resident bytes for one answer, and for eight answers at once."""
    del repeats
    model = load(folder, precision)
    features = model.encode_image(pictures(1)[0])

    def ask() -> None:
        model.generate(features, PROMPT, max_new_tokens=new_tokens)

    ask()
    one = peak_rss_bytes() or 0
    running = [threading.Thread(target=ask) for _ in range(8)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return {"one": one, "eight": peak_rss_bytes() or 0}


def rss_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


MEASURED: dict[str, Callable[..., dict[str, float]]] = {
    "chat": chat,
    "batch": batch,
    "memory": memory,
    "threads": threads,
}


def measured(figure: str, args: argparse.Namespace, precision: str, **env: str) -> dict[str, float]:
    """Measure one figure in its own process."""
    print(figure, precision, file=sys.stderr, flush=True)
    command = [sys.executable, __file__, args.package, "--only", figure, "--precision", precision]
    command += ["--new-tokens", str(args.new_tokens), "--repeats", str(args.repeats)]
    done = subprocess.run(command, env=os.environ | env, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def report(args: argparse.Namespace) -> str:
    variants = read_manifest(Path(args.package)).variants
    precisions = [name for name in PRECISIONS if name in variants]
    chats = {p: measured("chat", args, p) for p in precisions}
    batches = {p: measured("batch", args, p) for p in precisions}
    memories = {p: measured("memory", args, p) for p in precisions}
    lazy = {p: measured("memory", args, p, LAZY="1") for p in precisions}
    eight = {p: measured("threads", args, p) for p in precisions}
    lines = [
        "# Conversations, batches, memory",
        "",
        f"{processor()}, {os.cpu_count()} cores, ONNX Runtime {onnxruntime.__version__}; "
        f"{args.new_tokens} tokens in each answer, medians of {args.repeats}.",
        "",
        "| first token, ms | first question | second question | ratio |",
        "|---|---|---|---|",
    ]
    for name, row in chats.items():
        ratio = row["first"] / row["second"]
        lines.append(
            f"| {name} | {row['first'] * 1e3:.0f} | {row['second'] * 1e3:.0f} | {ratio:.1f} |"
        )
    lines += [
        "",
        f"| tokens a second, by batch | {' | '.join(map(str, BATCHES))} | ratio of largest to 1 |",
        "|---" * (len(BATCHES) + 2) + "|",
    ]
    for name, row in batches.items():
        cells = [f"{rate:.0f}" for rate in row.values()]
        ratio = row[str(BATCHES[-1])] / row["1"]
        lines.append(f"| {name} | {' | '.join(cells)} | {ratio:.1f} |")
    lines += [
        "",
        "| memory, MB | loaded | idle after answers | peak | lazy_vision: idle | peak "
        "| each further answer at once |",
        "|---" * 7 + "|",
    ]
    for name, row in memories.items():
        more = (eight[name]["eight"] - eight[name]["one"]) / 7
        values = [*row.values(), lazy[name]["idle"], lazy[name]["peak"], more]
        lines.append(f"| {name} | {' | '.join(f'{value / 1e6:,.0f}' for value in values)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", help="an exported folder")
    parser.add_argument("-o", "--output", type=Path, help="folder for the table")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=tuple(MEASURED), help="measure one figure and print JSON")
    parser.add_argument("--precision", default="int4", help="variant for --only")
    args = parser.parse_args()
    if args.only:
        found = MEASURED[args.only](args.package, args.precision, args.new_tokens, args.repeats)
        print(json.dumps(found))
        return
    text = report(args)
    print(text)
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "library.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
