"""Parity, speed and memory on an NVIDIA card, against PyTorch in float16 in the same run.

    python benchmarks/cuda_check.py -o docs/benchmarks     # 0.5B and 1.5B; 12 GB of disk
    python benchmarks/cuda_check.py --device cpu --size demo -o /tmp/check    # the script itself

Wants `fastvlm-onnx[cuda,export,verify]` with a PyTorch built for CUDA. Random weights of the true
sizes, one picture of 1024 pixels, a prompt of 280 positions, 64 tokens. Parity is with PyTorch in
float32 on the same device: relative error of image features and of the logits along its tokens.
"""

import argparse
import gc
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from random_checkpoint import DEMO_CHECKPOINT, PUBLISHED, write_random_checkpoint

import fastvlm_onnx
from fastvlm_onnx import FastVLM
from fastvlm_onnx.errors import FastVLMError
from fastvlm_onnx.export.pipeline import export_package
from fastvlm_onnx.export.sources.open_checkpoint import open_checkpoint
from fastvlm_onnx.export.verification.metrics import relative_error
from fastvlm_onnx.export.verification.reference_model import ReferenceFastVLM
from fastvlm_onnx.variants import variants_for_target

FloatArray = NDArray[np.float32]
TOKENS_BEFORE, TOKENS_AFTER = 14, 10
HEADER = (
    "way",
    "first token ms",
    "of which vision",
    "ms a token",
    "memory MB",
    "error, image features",
    "error, logits",
    "first choices alike",
)


class Question:
    """One prompt, and what PyTorch in float32 answers."""

    def __init__(self, checkpoint: Path, device: str, steps: int) -> None:
        self.steps, self.device = steps, device
        self.reference = self._load(checkpoint, torch.float32)
        config = self.reference.config
        rng = np.random.default_rng(0)
        size = config.vision.image_size
        self.pixel_values = rng.random((1, 3, size, size), np.float32)
        words = config.decoder.vocab_size - 3
        self.before_image = rng.integers(0, words, TOKENS_BEFORE).tolist()
        self.after_image = rng.integers(0, words, TOKENS_AFTER).tolist()
        self.features, self.logits, self.tokens, _ = self.ask(self.reference, None)
        del self.reference
        if device == "cuda":
            torch.cuda.empty_cache()  # what PyTorch keeps would hide what the next way takes

    def _load(self, checkpoint: Path, dtype: torch.dtype) -> ReferenceFastVLM:
        opened = open_checkpoint(checkpoint)
        reference = ReferenceFastVLM(opened.config)
        reference.load_checkpoint(
            {
                name: torch.from_numpy(np.require(tensor.read(), requirements=["C", "W"]))
                for name, tensor in opened.tensors.items()
            }
        )
        return reference.to(self.device, dtype)

    @torch.inference_mode()
    def ask(
        self, reference: ReferenceFastVLM, forced: list[int] | None
    ) -> tuple[FloatArray, FloatArray, list[int], tuple[float, float, float]]:
        """Features, logits, tokens; seconds of vision, of the first token, of a token after it."""
        dtype = next(reference.parameters()).dtype
        began = self.now()
        features = reference.encode_image(
            torch.from_numpy(self.pixel_values).to(self.device, dtype)
        )
        encoded = self.now()
        before = self.embed(reference, self.before_image)
        after = self.embed(reference, self.after_image)
        embeds, cache = torch.cat([before, features, after], dim=1), None
        logits, tokens, times = [], list[int](), [encoded]
        for step in range(self.steps):
            output = reference.decoder(
                inputs_embeds=embeds, past_key_values=cache, use_cache=True, logits_to_keep=1
            )
            cache = output.past_key_values
            logits.append(output.logits[0, 0].float().cpu().numpy())
            tokens.append(int(logits[-1].argmax()) if forced is None else forced[step])
            embeds = self.embed(reference, [tokens[-1]])
            times.append(self.now())
        seconds = encoded - began, times[1] - began, median(np.diff(times[1:]))
        return features.float().cpu().numpy(), np.stack(logits), tokens, seconds

    def embed(self, reference: ReferenceFastVLM, ids: list[int]) -> torch.Tensor:
        return reference.embed_tokens(torch.tensor([ids], device=self.device))

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def ask_package(
        self, model: FastVLM
    ) -> tuple[FloatArray, FloatArray, list[int], tuple[float, float, float]]:
        began = time.perf_counter()
        features = model.image_encoder.encode_pixel_values(self.pixel_values)
        encoded = time.perf_counter()
        language_model = model.language_model
        embeds = language_model.embed([self.before_image, features[0], self.after_image])
        cache = language_model.new_cache(embeds.shape[1] + self.steps)
        row, logits, times = language_model.prefill(embeds, cache), [], []
        for token in self.tokens:
            logits.append(row.copy())
            times.append(time.perf_counter())
            row = language_model.decode_one_step(token, cache)
        seconds = encoded - began, times[0] - began, median(np.diff(times))
        return features, np.stack(logits), self.tokens, seconds


def card_memory_mb() -> float:
    """Memory of the card in use, in MB; NaN where nvidia-smi is missing."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        return float(subprocess.check_output(command, text=True).splitlines()[0])
    except (OSError, subprocess.SubprocessError, ValueError):
        return float("nan")


def row(name: str, question: Question, ask: Callable[[], tuple], before_mb: float) -> list[str]:
    """Asked three times, the last one counts."""
    for _ in range(3):
        features, logits, _, (vision, first, step) = ask()
    alike = (logits.argmax(-1) == question.logits.argmax(-1)).sum()
    return [
        name,
        f"{first * 1e3:.1f}",
        f"{vision * 1e3:.1f}",
        f"{step * 1e3:.2f}",
        f"{card_memory_mb() - before_mb:,.0f}",
        f"{relative_error(features, question.features):.1e}",
        f"{relative_error(logits, question.logits):.1e}",
        f"{alike} of {len(logits)}",
    ]


def precisions_on(device: str) -> list[str]:
    return [p for p in variants_for_target("cuda") if device == "cuda" or p != "bf16"]


def prepare(size: str, folder: Path, device: str) -> tuple[Path, Path]:
    """Write the checkpoint and the package, unless the folder has them."""
    checkpoint = DEMO_CHECKPOINT if size == "demo" else folder / size
    if not (checkpoint / "config.json").exists():
        write_random_checkpoint(checkpoint, PUBLISHED[size])
    package = folder / f"{size}-onnx"
    if not package.exists():
        export_package(checkpoint, package, precisions=precisions_on(device))
    return checkpoint, package


def check(size: str, folder: Path, device: str, steps: int) -> list[list[str]]:
    checkpoint, package = prepare(size, folder, device)
    question = Question(checkpoint, device, steps)
    rows = []
    for precision in precisions_on(device):
        gc.collect()  # the variant before has given its memory back
        before = card_memory_mb()
        model = fastvlm_onnx.load(package, precision=precision, providers=device)
        for graph, session in model.sessions.items():
            print(size, precision, graph, session.placement, flush=True)
        ask = lambda m=model: question.ask_package(m)  # noqa: E731
        rows.append(row(f"{size} {precision}", question, ask, before))
        print(" | ".join(rows[-1]), flush=True)  # kept if the rest is cut short
        del model, ask
    gc.collect()
    before = card_memory_mb()
    half = question._load(checkpoint, torch.float16)
    ask = lambda: question.ask(half, question.tokens)  # noqa: E731
    return [*rows, row(f"{size} PyTorch float16", question, ask, before)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the table")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", action="append", choices=("demo", *PUBLISHED))
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--folder", type=Path, help="keep checkpoints and packages, or use them")
    parser.add_argument("--export-only", action="store_true", help="measure later; wants --folder")
    args = parser.parse_args()
    if args.export_only and not args.folder:
        parser.error("--export-only: say with --folder where the packages go")
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: PyTorch finds no NVIDIA card; run this where there is one.")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for size in args.size or ("0.5b", "1.5b"):
            folder = args.folder or Path(temporary)
            try:
                if args.export_only:
                    prepare(size, folder, args.device)
                else:
                    rows += check(size, folder, args.device, args.steps)
            except FastVLMError as error:
                sys.exit(f"error: {error}")
    if args.export_only:
        return
    name = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor()
    lines = [HEADER, ["---"] * len(HEADER), *rows]
    text = (
        f"# On {name or args.device}\n\nONNX Runtime {onnxruntime.__version__}, PyTorch "
        f"{torch.__version__}; random weights, {args.steps} tokens.\n\n"
        + "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        + "\n"
    )
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / f"{args.device}-check.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
