"""Train the built-in model and store it exactly as Apple stores a FastVLM checkpoint.

    python benchmarks/train_demo.py                    # 6,000 steps of 128 pictures; resumes
    python benchmarks/train_demo.py --device cuda --workers 15
    python benchmarks/train_demo.py --steps 20 --out /tmp/try

Seeded; stops and resumes (state in --work, written at least 50 times). The pictures are made while
it trains, each from its own seed, and never stored on disk. Where drawing is slower than learning,
--fresh fills batches up with pictures that were drawn before, in another light.

The language-model loss alone teaches to count and little else. So a second head reads every image
token during training: which colored shape has its centre in each quarter of it, which character
stands in each column of it, and their places in the answer. It is thrown away afterwards.
Convolutions that the checkpoint stores bare are trained with a BatchNorm behind them and folded at
the end, as the published models were. Each picture is encoded once and asked all its questions in
one sequence, a block mask keeping conversations apart. The stored weights are a moving average.
"""

import argparse
import math
import platform
import sys
import time
from pathlib import Path

import torch
from demo_training.batches import Batches
from demo_training.model import TrainingHeads, build_model, unfold
from demo_training.replay import Replay
from demo_training.step import TrainingStep
from demo_training.storing import save_checkpoint
from demo_training.tokenizer import load_tokenizer, train_tokenizer
from safetensors.torch import load_file
from torch.utils.data import DataLoader

PICTURES = 768_000  # of a training from nothing, about


def processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = info.read_text().split("model name\t: ") if info.exists() else []
    return names[1].splitlines()[0] if len(names) > 1 else platform.processor()


def learning_rate(args: argparse.Namespace, step: int) -> float:
    """Linear warm-up, then half a cosine to zero."""
    warm = min(1.0, (step + 1) / 300)
    cosine = 0.5 * (1 + math.cos(math.pi * step / args.steps))
    return float(args.lr * warm * (0.005 + 0.995 * cosine))


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    args.work.mkdir(parents=True, exist_ok=True)
    log = (args.work / "train.log").open("a")

    def say(line: str) -> None:
        print(line, flush=True)
        print(line, file=log, flush=True)

    if args.start:
        tokenizer_folder, tokenizer = args.start, load_tokenizer(args.start)
        model = build_model(load_file(args.start / "model.safetensors")).to(device)
    else:
        tokenizer_folder = args.work / "tokenizer"
        tokenizer, model = train_tokenizer(tokenizer_folder), build_model().to(device)
    fresh = args.fresh
    batches = Batches(tokenizer.to_str(), fresh, args.steps, args.first_picture)
    if args.start:
        pixels = [batches[k][0] for k in range(max(1, 256 // fresh))]
        unfold(model, (torch.cat(pixels).float() / 255).to(device))
    model.train()
    if args.channels_last:
        model.vision_encoder.to(memory_format=torch.channels_last)
    step_once = TrainingStep(
        model,
        TrainingHeads().to(device),
        average=args.average,
        bf16=args.bf16,
        is_compiled=args.compile,
    )
    first_step, seconds_before = 0, 0.0
    state_file = args.work / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True, map_location=device)
        step_once.load_state_dict(state)
        first_step, seconds_before = state["step"], state["seconds"]
        say(f"resumed at step {first_step}")
    count = sum(p.numel() for p in model.parameters())
    say(
        f"{count:,} parameters, {args.steps} steps of {args.batch_size} pictures, {fresh} of them"
        f" new, {processor()}"
    )
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=range(first_step, args.steps),
        num_workers=args.workers,
        prefetch_factor=4,
        pin_memory=device.type == "cuda",
    )
    replay = Replay(args.kept // fresh * fresh, args.seed, is_relit=True)
    every, saved_every = max(50, args.steps // 100), max(200, args.steps // 50)
    begin = time.perf_counter()
    for step, drawn in enumerate(loader, first_step):
        on_device = [part.to(device, non_blocking=True) for part in drawn]
        # The heads teach the vision encoder first; the answers count more as it learns.
        text_weight = 1 + 3 * min(1.0, 2 * (args.first_picture / PICTURES + step / args.steps))
        step_once(replay.batch(on_device, args.batch_size), learning_rate(args, step), text_weight)
        seconds = seconds_before + time.perf_counter() - begin
        if (step + 1) % every == 0:
            text, *heads = (step_once.sums / every).tolist()
            say(
                f"step {step + 1:5d}  pictures {(step + 1) * fresh:7d}  text {text:.4f}"
                f"  heads {' '.join(f'{value:.3f}' for value in heads)}  {seconds / 60:6.1f} min"
            )
            step_once.sums.zero_()
        if (step + 1) % saved_every == 0 or step + 1 == args.steps:
            state = step_once.state_dict() | {"step": step + 1, "seconds": seconds}
            torch.save(state, state_file.with_suffix(".new"))
            state_file.with_suffix(".new").replace(state_file)
        if step + 1 in (args.steps, *args.stored_at):
            average, tokens = step_once.average, len(tokenizer.get_vocab())
            save_checkpoint(average, tokenizer_folder, tokens, args.out)
            say(f"stored {args.out}")


def main() -> None:
    repository = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--fresh", type=int, help="pictures of a batch drawn for it; default: all")
    parser.add_argument("--kept", type=int, default=100_000, help="where its others come from")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--average", type=float, default=0.998, help="of the stored weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1, help="processes that draw pictures")
    parser.add_argument("--channels-last", action="store_true", help="sooner on most processors")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--compile", action="store_true", help="with torch.compile")
    parser.add_argument("--start", type=Path, help="a stored checkpoint to go on from")
    parser.add_argument("--first-picture", type=int, default=0, help="its seed")
    parser.add_argument("--stored-at", type=int, nargs="*", default=[], help="steps to store at")
    parser.add_argument("--work", type=Path, default=repository / ".training")
    parser.add_argument("--out", type=Path, default=repository / "fastvlm_onnx/demo/checkpoint")
    args = parser.parse_args()
    args.fresh = args.fresh or args.batch_size
    if not 0 < args.fresh <= min(args.batch_size, args.kept):
        parser.error(f"--fresh {args.fresh}: expected 1 to {min(args.batch_size, args.kept)}")
    train(args)


if __name__ == "__main__":
    sys.exit(main())
