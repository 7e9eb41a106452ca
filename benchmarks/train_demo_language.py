"""Train the built-in model's projector and language model further; its vision encoder stays.

    python benchmarks/train_demo_language.py --steps 3000 --first-picture 2870400 --out CHECKPOINT

It teaches new phrasings on a processor in less than an hour. ONNX Runtime encodes each picture
once. The features are kept and used again with the picture's questions, as train_demo.py keeps
pictures. The stored weights are a moving average. An interrupted training resumes. One thread is
the default: with two, PyTorch waits more than it computes on matrices of this size.
"""

import argparse
import copy
import sys
import tempfile
import time
from pathlib import Path

import onnxruntime
import torch
from demo_data.drawing import IMAGE_SIZE
from demo_training.batches import Batches
from demo_training.model import language_loss
from demo_training.replay import Replay
from demo_training.sizes import CONFIG
from demo_training.storing import save_checkpoint
from demo_training.tokenizer import load_tokenizer
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from train_demo import learning_rate, processor

from fastvlm_onnx.export.pipeline import export_package
from fastvlm_onnx.export.verification.reference_model import ReferenceFastVLM

CHECKPOINT = Path(__file__).resolve().parent.parent / "fastvlm_onnx/demo/checkpoint"


def open_vision_encoder(checkpoint: Path, threads: int) -> onnxruntime.InferenceSession:
    """Open the vision encoder of a checkpoint, exported in fp32."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        export_package(str(checkpoint), Path(folder) / "package", precisions=["fp32"])
        file = Path(folder) / f"package/vision_encoder.{IMAGE_SIZE}.fp32.onnx"
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    tokenizer = load_tokenizer(args.start)
    model = ReferenceFastVLM(CONFIG)
    model.load_checkpoint(load_file(args.start / "model.safetensors"))
    model.decoder.set_attn_implementation("sdpa")
    vision = open_vision_encoder(args.start, args.threads)
    learned = [*model.projector.parameters(), *model.decoder.parameters()]
    names = [name for name, _ in model.named_parameters() if not name.startswith("vision_encoder")]
    average = copy.deepcopy(model)
    averaged = dict(average.named_parameters())
    move_average = get_ema_multi_avg_fn(args.average)
    optimizer = torch.optim.AdamW(learned, args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    first_step, seconds_before = 0, 0.0
    state_file = args.work / "language.pt"
    args.work.mkdir(parents=True, exist_ok=True)
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first_step, seconds_before = state["step"], state["seconds"]
        print(f"resumed at step {first_step}", flush=True)
    batches = Batches(tokenizer.to_str(), args.fresh, args.steps, args.first_picture)
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=range(first_step, args.steps),
        num_workers=args.workers,
        prefetch_factor=8,
    )
    replay = Replay(args.kept // args.fresh * args.fresh, args.seed)
    print(f"{args.steps} steps of {args.batch_size}, {args.fresh} new, {processor()}", flush=True)
    begin, total = time.perf_counter(), 0.0
    for step, (pixels, *texts) in enumerate(loader, first_step):
        (hidden,) = vision.run(None, {"pixel_values": pixels.numpy().astype("float32") / 255})
        rows = replay.batch([torch.from_numpy(hidden), *texts[:4]], args.batch_size)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(args, step)
        loss = language_loss(model, model.projector(rows[0]), *rows[1:])
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        weights = dict(model.named_parameters())
        move_average([averaged[n].data for n in names], [weights[n].data for n in names], None)
        total += loss.item()
        seconds = seconds_before + time.perf_counter() - begin
        if (step + 1) % 50 == 0:
            print(f"step {step + 1:5d}  text {total / 50:.4f}  {seconds / 60:6.1f} min", flush=True)
            total = 0.0
        if (step + 1) % 200 == 0 or step + 1 == args.steps:
            state = {"model": model.state_dict(), "average": average.state_dict()}
            state |= {"optimizer": optimizer.state_dict(), "step": step + 1, "seconds": seconds}
            torch.save(state, state_file.with_suffix(".new"))
            state_file.with_suffix(".new").replace(state_file)
            save_checkpoint(average, args.start, len(tokenizer.get_vocab()), args.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=24)
    parser.add_argument("--fresh", type=int, default=8, help="pictures of a batch drawn for it")
    parser.add_argument("--kept", type=int, default=12_000, help="where its others come from")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--average", type=float, default=0.99, help="of the stored weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="processes that draw pictures")
    parser.add_argument("--start", type=Path, default=CHECKPOINT)
    parser.add_argument("--first-picture", type=int, required=True, help="its seed")
    parser.add_argument("--work", type=Path, default=Path(".training"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    train(args)


if __name__ == "__main__":
    sys.exit(main())
