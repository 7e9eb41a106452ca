"""Qwen2's decoder in plain PyTorch, float32, over prompts of different lengths without padding.

Tokens of all prompts lie in one row of a matrix [tokens, hidden_size]. Linear layers therefore see
no padding, and a part of the tokens can use another decoder than the rest, over one cache.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

Layer = dict[str, Tensor]
"""q, k, v, o, gate, up, down [out, in]; q_bias, k_bias, v_bias; input_norm, post_norm.

o_bias and down_bias are optional corrections."""

ATTENTION: Final = ("q", "k", "v", "o")
MATRICES: Final = (*ATTENTION, "gate", "up", "down")
# The matrices that read one input.
GROUPS: Final = {"qkv": ("q", "k", "v"), "o": ("o",), "gate_up": ("gate", "up"), "down": ("down",)}
# Attention is computed for so many padded positions at a time.
ATTENTION_POSITIONS: Final = 60_000

RoundInput = Callable[[int, str, Tensor, Tensor], Tensor]
"""(layer, group, x [tokens, in], runs [tokens]) -> x as the product reads it."""


@dataclass(frozen=True)
class Sizes:
    heads: int = 14
    kv_heads: int = 2
    head_dim: int = 64
    eps: float = 1e-6
    rope_theta: float = 1e6


@dataclass(frozen=True)
class Decoder:
    """Weights in float32.

    Attributes:
        embed: token embeddings [vocab_size, hidden_size].
        head: lm_head [vocab_size, hidden_size].
        norm: the last norm's weight [hidden_size].
        rotation: the residual stream's orthogonal matrix; the embeddings are multiplied by it, and
            the last norm's input by its transpose.
        round_input: rounds the input of a product; None leaves all inputs in float32.
        refined: so many of the likeliest tokens' logits are computed with a float32 input.
    """

    embed: Tensor
    layers: Sequence[Layer]
    norm: Tensor
    head: Tensor
    sizes: Sizes = field(default_factory=Sizes)
    rotation: Tensor | None = None
    round_input: RoundInput | None = None
    refined: int = 0

    @property
    def device(self) -> torch.device:
        return self.norm.device

    def changed(self, **fields: object) -> "Decoder":
        return replace(self, **fields)


@dataclass(frozen=True)
class Layout:
    """The place of every token: its prompt and its position.

    Attributes:
        cell: prompt * width + position, int64 [tokens].
        position: int64 [tokens].
        prompts: the number of prompts.
        width: positions of the longest prompt.
    """

    cell: Tensor
    position: Tensor
    prompts: int
    width: int

    @staticmethod
    def of(prompt: Tensor, position: Tensor, prompts: int) -> "Layout":
        width = int(position.max()) + 1
        return Layout(prompt * width + position, position, prompts, width)

    @staticmethod
    def of_lengths(lengths: Sequence[int], device: torch.device | str) -> "Layout":
        prompt = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])
        position = torch.cat([torch.arange(n) for n in lengths])
        return Layout.of(prompt.to(device), position.to(device), len(lengths))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rotary(x: Tensor, position: Tensor, sizes: Sizes) -> Tensor:
    """Rotate x [tokens, heads, head_dim] by its positions [tokens]."""
    half = sizes.head_dim // 2
    exponent = torch.arange(half, device=x.device, dtype=torch.float32) / half
    angle = position[:, None].float() * sizes.rope_theta**-exponent
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def projected(layer: Layer, name: str, x: Tensor) -> Tensor:
    return functional.linear(x, layer[name], layer.get(f"{name}_bias"))


def attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout, sizes: Sizes) -> Tensor:
    """Causal attention; q, k, v are [tokens, heads * head_dim] before the rotary embedding."""
    q = rotary(q.unflatten(-1, (sizes.heads, -1)), layout.position, sizes)
    k = rotary(k.unflatten(-1, (sizes.kv_heads, -1)), layout.position, sizes)
    v = v.unflatten(-1, (sizes.kv_heads, -1))
    padded = [_padded(x, layout) for x in (q, k, v)]
    step = max(1, ATTENTION_POSITIONS // layout.width)
    mixed = [
        _causal(*(x[start : start + step] for x in padded))
        for start in range(0, layout.prompts, step)
    ]
    return torch.cat(mixed).transpose(1, 2).flatten(2).flatten(0, 1)[layout.cell]


def _padded(x: Tensor, layout: Layout) -> Tensor:
    """Return [prompts, heads, width, head_dim]; padding is at the end, where nothing reads it."""
    cells = x.new_zeros(layout.prompts * layout.width, *x.shape[1:])
    cells[layout.cell] = x
    return cells.unflatten(0, (layout.prompts, layout.width)).transpose(1, 2)


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    repeats = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(repeats, 1) for x in (k, v))
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


@dataclass
class Part:
    """Some of the tokens, and the decoder that computes them.

    Attributes:
        decoder: its weights.
        x: the residual stream [tokens, hidden_size].
        runs: the run of the graph that computes each token, int64 [tokens]; a scale of
            DynamicQuantizeLinear covers one run.
    """

    decoder: Decoder
    x: Tensor
    runs: Tensor

    def read(self, layer: int, group: str, x: Tensor) -> Tensor:
        rounding = self.decoder.round_input
        return x if rounding is None else rounding(layer, group, x, self.runs)


def run_layers(parts: Sequence[Part], layout: Layout) -> list[Tensor]:
    """Return the last norm's output of each part; the parts' tokens lie in the layout's order."""
    sizes, counts = parts[0].decoder.sizes, [len(part.x) for part in parts]
    for part in parts:
        if part.decoder.rotation is not None:
            part.x = part.x @ part.decoder.rotation
    for i in range(len(parts[0].decoder.layers)):
        qkv = []
        for part in parts:
            layer = part.decoder.layers[i]
            x = part.read(i, "qkv", rms_norm(part.x, layer["input_norm"], sizes.eps))
            qkv.append([projected(layer, name, x) for name in GROUPS["qkv"]])
        q, k, v = (torch.cat(x) for x in zip(*qkv, strict=True))
        mixed = attend(q, k, v, layout, sizes).split(counts)
        for part, own in zip(parts, mixed, strict=True):
            layer = part.decoder.layers[i]
            part.x = part.x + projected(layer, "o", part.read(i, "o", own))
            part.x = part.x + mlp(part, i)
    return [last_norm(part.decoder, part.x) for part in parts]


def mlp(part: Part, i: int) -> Tensor:
    layer = part.decoder.layers[i]
    x = part.read(i, "gate_up", rms_norm(part.x, layer["post_norm"], part.decoder.sizes.eps))
    gated = functional.silu(projected(layer, "gate", x)).mul_(projected(layer, "up", x))
    return projected(layer, "down", part.read(i, "down", gated))


def last_norm(decoder: Decoder, x: Tensor) -> Tensor:
    if decoder.rotation is not None:
        x = x @ decoder.rotation.T
    return rms_norm(x, decoder.norm, decoder.sizes.eps)


def layer_inputs(decoder: Decoder, layer: Layer, x: Tensor, layout: Layout) -> dict[str, Tensor]:
    """Return the input of each group of a layer, for the residual stream x, and "next"."""
    sizes = decoder.sizes
    h = rms_norm(x, layer["input_norm"], sizes.eps)
    q, k, v = (projected(layer, name, h) for name in GROUPS["qkv"])
    mixed = attend(q, k, v, layout, sizes)
    x = x + projected(layer, "o", mixed)
    middle = rms_norm(x, layer["post_norm"], sizes.eps)
    gated = functional.silu(projected(layer, "gate", middle)) * projected(layer, "up", middle)
    after = x + projected(layer, "down", gated)
    return {"qkv": h, "o": mixed, "gate_up": middle, "down": gated, "next": after}


def generate(decoder: Decoder, prompts: Sequence[Tensor], steps: int) -> Tensor:
    """Return the greedy tokens, int64 [prompts, steps]; end tokens do not stop it.

    Args:
        decoder: without a rotation and without rounding of inputs.
        prompts: embeddings [length, hidden_size] of each prompt.
        steps: tokens of each answer.
    """
    sizes, device = decoder.sizes, decoder.device
    lengths = torch.tensor([len(x) for x in prompts], device=device)
    layout = Layout.of_lengths([len(x) for x in prompts], device)
    x, caches = torch.cat(list(prompts)), []
    for layer in decoder.layers:
        h = rms_norm(x, layer["input_norm"], sizes.eps)
        q, k, v = (projected(layer, name, h) for name in GROUPS["qkv"])
        rotated = rotary(k.unflatten(-1, (sizes.kv_heads, -1)), layout.position, sizes)
        cache = [
            functional.pad(_padded(c, layout), (0, 0, 0, steps))
            for c in (rotated, v.unflatten(-1, (sizes.kv_heads, -1)))
        ]
        caches.append(cache)
        x = x + projected(layer, "o", attend(q, k, v, layout, sizes))
        x = x + _plain_mlp(decoder, layer, x)
    last = torch.arange(len(prompts), device=device) * layout.width + lengths - 1
    order = torch.zeros(layout.prompts * layout.width, dtype=torch.int64, device=device)
    order[layout.cell] = torch.arange(len(x), device=device)
    x, tokens = x[order[last]], []
    for step in range(steps):
        hidden = last_norm(decoder, x)
        tokens.append((hidden @ decoder.head.T).argmax(-1))
        if step == steps - 1:
            break
        x, position = decoder.embed[tokens[-1]], lengths + step
        for layer, cache in zip(decoder.layers, caches, strict=True):
            h = rms_norm(x, layer["input_norm"], sizes.eps)
            q, k, v = (projected(layer, name, h) for name in GROUPS["qkv"])
            x = x + projected(layer, "o", _attend_one(q, k, v, cache, position, sizes))
            x = x + _plain_mlp(decoder, layer, x)
    return torch.stack(tokens, 1)


def _plain_mlp(decoder: Decoder, layer: Layer, x: Tensor) -> Tensor:
    h = rms_norm(x, layer["post_norm"], decoder.sizes.eps)
    gated = functional.silu(projected(layer, "gate", h)) * projected(layer, "up", h)
    return projected(layer, "down", gated)


def _attend_one(
    q: Tensor, k: Tensor, v: Tensor, cache: Sequence[Tensor], position: Tensor, sizes: Sizes
) -> Tensor:
    """Append one key and value a prompt to the cache, and attend with one query a prompt."""
    q = rotary(q.unflatten(-1, (sizes.heads, -1)), position, sizes)
    k = rotary(k.unflatten(-1, (sizes.kv_heads, -1)), position, sizes)
    rows = torch.arange(len(q), device=q.device)
    cache[0][rows, :, position] = k
    cache[1][rows, :, position] = v.unflatten(-1, (sizes.kv_heads, -1))
    seen = torch.arange(cache[0].shape[2], device=q.device) <= position[:, None]
    repeats = sizes.heads // sizes.kv_heads
    keys, values = (x.repeat_interleave(repeats, 1) for x in cache)
    mixed = functional.scaled_dot_product_attention(
        q[:, :, None], keys, values, attn_mask=seen[:, None, None]
    )
    return mixed[:, :, 0].flatten(1)
