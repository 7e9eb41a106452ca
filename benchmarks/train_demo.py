"""Train the built-in model and store it exactly as Apple stores a FastVLM checkpoint.

    python benchmarks/train_demo.py                    # 3,300 steps of 64 pictures; resumes
    python benchmarks/train_demo.py --steps 20 --out /tmp/try

Seeded; stops and resumes at any step (state in --work, written every 200 steps).

What made it learn. The language-model loss alone learns to count and little else, so a second head
reads every image token during training: which coloured shape has its centre there, which characters
(at most two, in the left and the right half), and their place in reading order. It is thrown away
afterwards. Convolutions that the checkpoint stores bare are trained with a BatchNorm behind them
and folded at the end, as the published models were. Each picture is encoded once and asked all its
questions in one sequence, a block mask keeping them apart.
"""

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import demo_data as data
import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset

from fastvlm_onnx.export.architecture.config import DecoderConfig, FastVLMConfig, VisionConfig
from fastvlm_onnx.export.verification.reference_model import (
    PROJECTOR_PREFIX,
    VISION_PREFIX,
    DepthwiseConv,
    MobileOneBlock,
    ReferenceFastVLM,
    ReparamLargeKernelConv,
)

VOCAB_ROWS = 512  # rows in the file; the tokenizer is shorter, as in the published checkpoints
NUM_MERGES = 240
EMBED_LENGTH = 112  # packed tokens of one picture: prefix and all its questions
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

VISION = VisionConfig(
    image_size=data.IMAGE_SIZE,
    depths=(1, 2, 4, 3, 2),
    widths=(16, 32, 64, 128, 256),
    ffn_widths=(64, 128, 256, 512, 1024),
    hidden_size=512,
    se_width=32,
)
LANGUAGE = DecoderConfig(
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    vocab_size=VOCAB_ROWS,
    max_position_embeddings=2048,
    rope_theta=1_000_000.0,
    rms_norm_eps=1e-6,
    eos_token_ids=(),
    is_tied=False,
)


# --- tokenizer ---------------------------------------------------------------------------------


def train_tokenizer(folder: Path) -> Tokenizer:
    """Byte-level BPE with Qwen2's splitting rule; writes Apple's three files into `folder`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    corpus = ["system", "user", "assistant", "You are a helpful assistant."]
    for seed in range(4000):
        sample = data.draw_sample(seed, kind="shapes")
        for question in data.ask(sample, random.Random(seed)):
            corpus += [question.prompt, question.answer]
    corpus += [*data.READ * 500, 'The word " in black.', 'The number " in white.'] * 2
    trainer = trainers.BpeTrainer(
        vocab_size=256 + NUM_MERGES,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocab, merges = model["vocab"], model["merges"]
    folder.mkdir(parents=True, exist_ok=True)
    added = {token: len(vocab) + i for i, token in enumerate(SPECIAL_TOKENS)}
    pairs = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]) + "\n")
    (folder / "added_tokens.json").write_text(json.dumps(added, indent=2) + "\n")
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    assert tokenizer.token_to_id("<|im_end|>") == added["<|im_end|>"]
    return tokenizer


# --- batches -----------------------------------------------------------------------------------


class Pictures(IterableDataset[tuple[Tensor, ...]]):
    """Batches of packed training examples, a function of the step alone."""

    def __init__(self, tokenizer: str, batch_size: int, first_step: int, steps: int) -> None:
        self.tokenizer, self.batch_size = tokenizer, batch_size
        self.first_step, self.steps = first_step, steps

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        tokenizer = Tokenizer.from_str(self.tokenizer)
        for step in range(self.first_step, self.steps):
            # One object, then two, then all four: the first tenth of training each.
            progress = step / self.steps
            max_shapes = 1 if progress < 0.03 else 2 if progress < 0.08 else 4
            rows = [
                pack(tokenizer, data.draw_sample(step * self.batch_size + i, max_shapes), step, i)
                for i in range(self.batch_size)
            ]
            yield tuple(torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True))


def to_square(sample: data.Sample) -> np.ndarray:
    """uint8 [3, 256, 256]: padded with black, Pillow bicubic, as predict.py does."""
    from PIL import Image

    picture = sample.picture
    side = max(picture.size)
    square = Image.new("RGB", (side, side))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    resized = square.resize((data.IMAGE_SIZE,) * 2, Image.Resampling.BICUBIC)
    return np.asarray(resized).transpose(2, 0, 1)


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def pack(tokenizer: Tokenizer, sample: data.Sample, step: int, i: int) -> tuple[np.ndarray, ...]:
    """One picture and its questions: pixels, ids, labels, positions, segments, token targets."""
    newline = encode(tokenizer, "\n")
    prefix = encode(tokenizer, SYSTEM) + [-1] * VISION.num_image_tokens + newline
    ids = np.zeros(EMBED_LENGTH, np.int64)
    labels = np.full(EMBED_LENGTH, -100, np.int64)
    positions = np.zeros(EMBED_LENGTH, np.int64)
    segments = np.full(EMBED_LENGTH, -1, np.int64)
    ids[: len(prefix)] = prefix
    positions[: len(prefix)] = range(len(prefix))
    segments[: len(prefix)] = 0
    end = len(prefix)
    questions = data.ask(sample, random.Random(step * 1_000_003 + i))
    for segment, question in enumerate(questions, 1):
        asked = encode(tokenizer, f"\n{question.prompt}<|im_end|>\n<|im_start|>assistant\n")
        assert asked[:1] == newline
        asked = asked[1:]
        answer = encode(tokenizer, f"{question.answer}<|im_end|>")
        length = len(asked) + len(answer)
        if end + length > EMBED_LENGTH:
            break
        ids[end : end + length] = asked + answer
        labels[end + len(asked) : end + length] = answer
        positions[end : end + length] = range(len(prefix), len(prefix) + length)
        segments[end : end + length] = segment
        end += length
    return (to_square(sample), ids, labels, positions, segments, *token_targets(sample))


def token_targets(sample: data.Sample) -> tuple[np.ndarray, np.ndarray]:
    """The classes that the training-only head reads from each image token.

    Returns:
        shapes: int64 [tokens, 3], shape (0 none), colour, place in reading order; -100 unasked.
        characters: int64 [tokens, 2, 2], for each half: character (0 none), place in the text.
    """
    tokens = VISION.num_image_tokens
    shapes = np.full((tokens, 3), -100, np.int64)
    shapes[:, 0] = 0
    characters = np.full((tokens, 2, 2), -100, np.int64)
    characters[:, :, 0] = 0
    colors = list(data.TEXT_COLORS)
    for place, mark in enumerate(sample.shapes):
        shapes[mark.cell] = (1 + data.SHAPES.index(mark.name), colors.index(mark.color), place)
    for place, mark in enumerate(sample.characters):
        half = int(mark.x // (data.CELL // 2)) % 2
        characters[mark.cell, half] = (1 + data.CHARACTERS.index(mark.name), place)
        shapes[mark.cell, 1] = colors.index(mark.color)
    return shapes, characters


# --- the model under training ------------------------------------------------------------------


class ConvBN(nn.Module):
    """A convolution with the BatchNorm that is folded into it for storing."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv, self.bn = conv, nn.BatchNorm2d(conv.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))

    def folded(self) -> nn.Conv2d:
        return nn.utils.fuse_conv_bn_eval(self.conv.eval(), self.bn.eval())


def prepare_for_training(model: ReferenceFastVLM) -> None:
    """BatchNorm behind the bare convolutions, identity where a residual is folded in."""
    for module in list(model.vision_encoder.modules()):
        if isinstance(module, MobileOneBlock):
            module.reparam_conv = ConvBN(module.reparam_conv)
        elif isinstance(module, ReparamLargeKernelConv):
            module.lkb_reparam = ConvBN(module.lkb_reparam)
        elif isinstance(module, DepthwiseConv):
            middle = module.reparam_conv.kernel_size[0] // 2
            with torch.no_grad():
                module.reparam_conv.weight.mul_(0.3)
                module.reparam_conv.weight[:, 0, middle, middle] += 1
                module.reparam_conv.bias.zero_()
    for name, parameter in model.vision_encoder.named_parameters():
        if "layer_scale" in name:
            nn.init.constant_(parameter, 0.3)


def folded_tensors(model: ReferenceFastVLM) -> dict[str, Tensor]:
    """The checkpoint under Apple's names, bf16, convolutions folded, the unused head included."""
    import copy

    vision = copy.deepcopy(model.vision_encoder).eval()
    for module in list(vision.modules()):
        for attribute in ("reparam_conv", "lkb_reparam"):
            inner = getattr(module, attribute, None)
            if isinstance(inner, ConvBN):
                setattr(module, attribute, inner.folded())
    tensors = {VISION_PREFIX + name: t for name, t in vision.state_dict().items()}
    # Apple's files hold the classification head too; nothing reads it.
    tensors[VISION_PREFIX + "head.proj"] = torch.zeros(VISION.hidden_size, 64)
    tensors |= {PROJECTOR_PREFIX + name: t for name, t in model.projector.state_dict().items()}
    tensors |= dict(model.decoder.state_dict())
    return {
        name: t.detach().to(torch.bfloat16 if t.is_floating_point() else t.dtype).contiguous()
        for name, t in tensors.items()
    }


class TokenHead(nn.Module):
    """Reads what stands under each image token; for training only."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = (1 + len(data.SHAPES), len(data.TEXT_COLORS), 4)
        self.sizes += (1 + len(data.CHARACTERS), 4) * 2
        self.linear = nn.Linear(LANGUAGE.hidden_size, sum(self.sizes))

    def loss(self, image_features: Tensor, shapes: Tensor, characters: Tensor) -> Tensor:
        """float32 [7]: shape, colour, place; then character and place of the left, right half."""
        parts = self.linear(image_features).flatten(0, 1).split(self.sizes, dim=-1)
        targets = [
            *shapes.flatten(0, 1).unbind(-1),
            *characters.flatten(2).flatten(0, 1).unbind(-1),
        ]
        losses = []
        for logits, target in zip(parts, targets, strict=True):
            # Most tokens hold nothing; unweighted, "nothing" is all that would be learned.
            weight = torch.ones(logits.shape[-1])
            if logits.shape[-1] in (self.sizes[0], self.sizes[3]):
                weight[0] = 0.04
            losses.append(functional.cross_entropy(logits, target, weight, ignore_index=-100))
        return torch.stack(losses).nan_to_num()


def language_loss(
    model: ReferenceFastVLM, features: Tensor, ids: Tensor, labels: Tensor, *where: Tensor
) -> Tensor:
    positions, segments = where
    embeds = model.embed_tokens(ids.clamp(min=0))
    is_image = ids == -1
    embeds = embeds.masked_scatter(is_image[..., None], features.flatten(0, 1))
    same = (segments[:, None, :] == segments[:, :, None]) | (segments[:, None, :] == 0)
    causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    allowed = same & causal
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, -1e9)[:, None]
    hidden = model.decoder.model(
        inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
    ).last_hidden_state
    asked = labels[:, 1:] != -100
    logits = model.decoder.lm_head(hidden[:, :-1][asked])
    return functional.cross_entropy(logits, labels[:, 1:][asked])


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    log = (args.work / "train.log").open("a")

    def say(line: str) -> None:
        print(line, flush=True)
        print(line, file=log, flush=True)

    tokenizer = train_tokenizer(args.work / "tokenizer")
    model = ReferenceFastVLM(FastVLMConfig(VISION, LANGUAGE))
    model.decoder.set_attn_implementation("sdpa")
    prepare_for_training(model)
    head = TokenHead()
    model.train()
    vision = model.vision_encoder.to(memory_format=torch.channels_last)
    encoder = torch.compile(vision) if args.compile else vision
    parameters = [*model.named_parameters(), *head.named_parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for _, p in parameters if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for _, p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
    )

    first_step, seconds_before = 0, 0.0
    state_file = args.work / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        head.load_state_dict(state["head"])
        optimizer.load_state_dict(state["optimizer"])
        first_step, seconds_before = state["step"], state["seconds"]
        say(f"resumed at step {first_step}")

    batches = DataLoader(
        Pictures(tokenizer.to_str(), args.batch_size, first_step, args.steps),
        batch_size=None,
        num_workers=1,
        prefetch_factor=4,
    )
    parameter_count = sum(p.numel() for p in model.parameters())
    say(f"{parameter_count:,} parameters, {args.steps} steps of {args.batch_size} pictures")
    begin = time.perf_counter()
    text_sum, token_sums = 0.0, torch.zeros(len(head.sizes))
    for step, batch in enumerate(batches, first_step):
        pixels, ids, labels, positions, segments, shapes, characters = batch
        warm = min(1.0, (step + 1) / 200)
        cosine = 0.5 * (1 + math.cos(math.pi * step / args.steps))
        for group in optimizer.param_groups:
            group["lr"] = args.lr * warm * (0.01 + 0.99 * cosine)
        pixel_values = (pixels.float() / 255).contiguous(memory_format=torch.channels_last)
        features = model.projector(encoder(pixel_values))
        token_loss = head.loss(features, shapes, characters)
        text_loss = language_loss(model, features, ids, labels, positions, segments)
        (text_loss + token_loss.sum()).backward()
        nn.utils.clip_grad_norm_([p for _, p in parameters], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        text_sum += float(text_loss.detach())
        token_sums += token_loss.detach()
        if (step + 1) % 50 == 0:
            seconds = seconds_before + time.perf_counter() - begin
            tokens = " ".join(f"{v / 50:.3f}" for v in token_sums)
            say(
                f"step {step + 1:5d}  pictures {(step + 1) * args.batch_size:7d}  "
                f"text {text_sum / 50:.4f}  tokens {tokens}  {seconds / 60:5.1f} min"
            )
            text_sum, token_sums = 0.0, torch.zeros(len(head.sizes))
        if (step + 1) % 200 == 0 or step + 1 == args.steps:
            state = {
                "model": model.state_dict(),
                "head": head.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
                "seconds": seconds_before + time.perf_counter() - begin,
            }
            torch.save(state, state_file.with_suffix(".new"))
            state_file.with_suffix(".new").replace(state_file)
    save_checkpoint(model, args.work / "tokenizer", len(tokenizer.get_vocab()), args.out)
    say(f"stored {args.out}")
    for line in accuracy_report(args.out, tokenizer):
        say(line)


# --- storing and judging -----------------------------------------------------------------------


def save_checkpoint(model: ReferenceFastVLM, tokenizer: Path, tokens: int, out: Path) -> None:
    """Write config.json, model.safetensors and the tokenizer's files as Apple's folder has them."""
    out.mkdir(parents=True, exist_ok=True)
    save_file(folded_tensors(model), out / "model.safetensors", metadata={"format": "pt"})
    for name in ("vocab.json", "merges.txt", "added_tokens.json"):
        (out / name).write_bytes((tokenizer / name).read_bytes())
    special = json.loads((out / "added_tokens.json").read_text())
    config = {
        "architectures": ["LlavaQwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": special["<|endoftext|>"],
        "eos_token_id": special["<|im_end|>"],
        "freeze_mm_mlp_adapter": False,
        "hidden_act": "silu",
        "hidden_size": LANGUAGE.hidden_size,
        "image_aspect_ratio": "pad",
        "image_grid_pinpoints": None,
        "initializer_range": 0.02,
        "intermediate_size": LANGUAGE.intermediate_size,
        "max_position_embeddings": LANGUAGE.max_position_embeddings,
        "max_window_layers": LANGUAGE.num_hidden_layers,
        "mm_hidden_size": VISION.hidden_size,
        "mm_patch_merge_type": "flat",
        "mm_projector_lr": None,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": f"mobileclip_l_{VISION.image_size}",
        "model_type": "llava_qwen2",
        "num_attention_heads": LANGUAGE.num_attention_heads,
        "num_hidden_layers": LANGUAGE.num_hidden_layers,
        "num_key_value_heads": LANGUAGE.num_key_value_heads,
        "rms_norm_eps": LANGUAGE.rms_norm_eps,
        "rope_theta": LANGUAGE.rope_theta,
        "sliding_window": LANGUAGE.max_position_embeddings,
        "tie_word_embeddings": False,
        "tokenizer_model_max_length": LANGUAGE.max_position_embeddings,
        "tokenizer_padding_side": "right",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.39.3",
        "tune_mm_mlp_adapter": False,
        "unfreeze_mm_vision_tower": True,
        "use_cache": True,
        "use_mm_proj": True,
        "use_sliding_window": False,
        "vocab_size": VOCAB_ROWS,
    }
    assert tokens <= VOCAB_ROWS
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (out / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "transformers_version": "4.39.3"}, indent=2) + "\n"
    )
    tokenizer_config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(i): {"content": token, "special": True} for token, i in special.items()
        },
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": LANGUAGE.max_position_embeddings,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")
    (out / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, indent=2) + "\n"
    )


def accuracy_report(checkpoint: Path, tokenizer: Tokenizer, number: int = 500) -> list[str]:
    """Accuracy of the stored (bf16, folded) weights on held-out pictures of each kind."""
    from safetensors.torch import load_file

    model = ReferenceFastVLM(FastVLMConfig(VISION, LANGUAGE))
    model.load_checkpoint(load_file(checkpoint / "model.safetensors"))
    eos = tokenizer.token_to_id("<|im_end|>")
    lines = []
    for kind in data.KINDS:
        right = asked = whole = 0
        for sample, question in data.held_out(kind, number):
            pixels = torch.from_numpy(to_square(sample).astype(np.float32) / 255)[None]
            features = model.encode_image(pixels)
            chunks = (
                encode(tokenizer, SYSTEM),
                encode(tokenizer, f"\n{question.prompt}<|im_end|>\n<|im_start|>assistant\n"),
            )
            before, after = (model.embed_tokens(torch.tensor([ids])) for ids in chunks)
            token_ids = model.generate_greedy(torch.cat([before, features, after], 1), 40)
            token_ids = token_ids[: token_ids.index(eos)] if eos in token_ids else token_ids
            answer = tokenizer.decode(token_ids)
            whole += answer == question.answer
            if kind == "describe":
                expected, found = (data.attributes(text) for text in (question.answer, answer))
                asked += max(len(expected), len(found))
                right += sum(a == b for a, b in zip(expected, found, strict=False))
        percent = 100 * whole / number
        line = f"held out {kind:9s} {whole:4d} of {number} answers exact ({percent:.1f} %)"
        if kind == "describe":
            line += f", {right} of {asked} colours and shapes right ({100 * right / asked:.1f} %)"
        lines.append(line)
    return lines


def main() -> None:
    repository = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3300)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="torch.compile the vision encoder")
    parser.add_argument("--work", type=Path, default=repository / ".training")
    parser.add_argument("--out", type=Path, default=repository / "fastvlm_onnx/demo/checkpoint")
    train(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
