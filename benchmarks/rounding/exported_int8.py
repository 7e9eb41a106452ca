"""The int8 decoder as it is exported: Hadamard transforms, and GPTQ layer by layer.

Weights have a scale for each output channel, activations a scale for each token. Each product is
rounded on the inputs that the rounded products before it give.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rounding.decoder import (
    GROUPS,
    Decoder,
    Layer,
    Layout,
    attend,
    layer_inputs,
    projected,
    rms_norm,
)
from rounding.gptq import damped, gptq, inverse_factor
from rounding.int8 import hadamard_blocks, rotate
from rounding.integers import Spec, hadamard, nearest, round_blocks
from torch import Tensor
from torch.nn import functional

Place = tuple[str, int, int]
"""Groups ("qkv o"), the first layer, and the layer after the last."""
EVERYWHERE: Place = ("qkv o gate_up down", 0, 10**6)


@dataclass(frozen=True)
class ExportedRecipe:
    """A change of the exported int8 decoder.

    Attributes:
        stream: size of the Hadamard blocks of the residual stream.
        spread: sizes of the Hadamard blocks before the output and the down projections.
        method: nearest or gptq.
        damping: of GPTQ, and for the down projections.
        weight_block: columns that share a weight's scale; 0 for a whole row.
        input_blocks: columns that share an activation's scale, by groups; 0 for a whole row.
        exact_weights: places whose weights stay float32.
        exact_inputs: places whose inputs stay float32.
        balances: the inputs of the down projections are scaled by channel, which `up` takes up:
            the exponent of their root mean square over the norm of the weight's column.
        balances_values: the same for the output projections, which `v` takes up.
        balances_stream: the same for whole blocks of the residual stream, which the norms take up.
        sorts_stream: the blocks of the residual stream hold channels of a similar size.
        refined: so many of the likeliest tokens' logits are computed with a float32 input; -1 for
            all.
        rounds_head: False leaves lm_head and its input in float32.
        rounds_embed: False leaves the token embeddings in float32.
        sees_rounded: the calibration's inputs are rounded like those of the graph.
        texts: the number of calibration texts.
        chosen: name of the calibration set.
    """

    stream: int = 128
    spread: tuple[int, int] = (64, 64)
    method: str = "gptq"
    damping: tuple[float, float] = (0.05, 0.2)
    weight_block: int = 0
    input_blocks: tuple[tuple[str, int], ...] = ()
    exact_weights: tuple[Place, ...] = ()
    exact_inputs: tuple[Place, ...] = ()
    balances: float = 0
    balances_values: float = 0
    balances_stream: float = 0
    sorts_stream: bool = False
    refined: int = 16
    rounds_head: bool = True
    rounds_embed: bool = True
    sees_rounded: bool = False
    texts: int = 64
    chosen: str = "chat"

    def spread_of(self, group: str) -> int:
        return dict(zip(("o", "down"), self.spread, strict=True)).get(group, 1)

    def extra_bytes(self, layers: Sequence[Layer]) -> int:
        """Return the bytes beyond a scale for each output channel; no place is exact."""
        if not self.weight_block:
            return 0
        matrices = [layer[name] for layer in layers for own in GROUPS.values() for name in own]
        return sum(4 * len(m) * (m.shape[1] // self.weight_block - 1) for m in matrices)

    def input_block(self, group: str) -> int:
        return next((size for names, size in self.input_blocks if group in names.split()), 0)


def is_in(places: Sequence[Place], group: str, layer: int) -> bool:
    return any(group in names.split() and a <= layer < b for names, a, b in places)


def transformed(decoder: Decoder, recipe: ExportedRecipe, order: Tensor | None = None) -> Decoder:
    """Return the same function with a transformed residual stream."""
    size = len(decoder.norm)
    blocks = [hadamard(recipe.stream, decoder.device)] * (size // recipe.stream)
    matrix = torch.block_diag(*blocks)
    if order is not None:
        matrix = matrix[order.argsort()]
    return rotate(decoder, matrix)


def stream_order(decoder: Decoder, x: Tensor, layout: Layout) -> Tensor:
    """Return the channels of the residual stream, those with large inputs first."""
    total = torch.zeros_like(decoder.norm)
    for layer in decoder.layers:
        inputs = layer_inputs(decoder, layer, x, layout)
        for group, norm in (("qkv", "input_norm"), ("gate_up", "post_norm")):
            weight = torch.cat([layer[name] for name in GROUPS[group]]) * layer[norm]
            size = (inputs[group] / layer[norm]).square().mean(0).sqrt()
            total += (size / weight.norm(dim=0).clamp(min=1e-6)).clamp(min=1e-9).log()
        x = inputs["next"]
    return total.argsort(descending=True)


def read(recipe: ExportedRecipe, group: str, x: Tensor) -> Tensor:
    return hadamard_blocks(x, recipe.spread_of(group)) if recipe.spread_of(group) > 1 else x


def round_input(recipe: ExportedRecipe, layer: int, group: str, x: Tensor) -> Tensor:
    """Return the input of a product as the graph multiplies it, transformed and rounded."""
    x = read(recipe, group, x)
    if is_in(recipe.exact_inputs, group, layer):
        return x
    return round_blocks(x, recipe.input_block(group) or x.shape[1])


def round_exported(
    decoder: Decoder, recipe: ExportedRecipe, ids: Sequence[Tensor], embed: Tensor
) -> Decoder:
    """Return the decoder with rounded layers; lm_head and the embeddings stay as they are.

    Args:
        decoder: in float32.
        recipe: the way to round.
        ids: token ids of the calibration texts.
        embed: the token embeddings that the calibration reads.
    """
    tokens = torch.cat(list(ids)).to(decoder.device)
    layout = Layout.of_lengths([len(x) for x in ids], decoder.device)
    order = stream_order(decoder, embed[tokens], layout) if recipe.sorts_stream else None
    decoder = transformed(decoder, recipe, order)
    x = embed[tokens] @ decoder.rotation
    layers = []
    for i, layer in enumerate(decoder.layers):
        rounded, x = _round_layer(decoder, layer, i, recipe, x, layout)
        layers.append(rounded)
    return decoder.changed(layers=layers)


def _round_layer(
    decoder: Decoder, layer: Layer, index: int, recipe: ExportedRecipe, x: Tensor, layout: Layout
) -> tuple[Layer, Tensor]:
    eps, layer = decoder.sizes.eps, dict(layer)
    rounded = dict(layer)

    def step(group: str, value: Tensor) -> Tensor:
        value = read(recipe, group, value)
        names = GROUPS[group]
        weight = torch.cat([read(recipe, group, layer[name]) for name in names])
        norm = {"qkv": "input_norm", "gate_up": "post_norm"}.get(group)
        if recipe.balances_stream and norm:
            blocks = (-1, recipe.stream)
            size = value.square().mean(0).unflatten(0, blocks).mean(1)
            size = (size / weight.square().mean(0).unflatten(0, blocks).mean(1)).sqrt()
            s = (size**recipe.balances_stream).repeat_interleave(recipe.stream)
            value, weight = value / s, weight * s
            rounded[norm] = layer[norm] / s
        inputs = value
        if recipe.sees_rounded and not is_in(recipe.exact_inputs, group, index):
            inputs = round_blocks(value, recipe.input_block(group) or value.shape[1])
        spec = Spec(8, recipe.weight_block)
        if not is_in(recipe.exact_weights, group, index):
            if recipe.method == "gptq":
                hessian = damped(inputs.T @ inputs, recipe.damping[group == "down"], True)
                order = hessian.diagonal().argsort(descending=True)
                factor = inverse_factor(hessian[order][:, order])
                weight, _ = gptq(weight, hessian, spec, True, True, factor)
            else:
                weight = nearest(weight, spec)
        rounded.update(zip(names, weight.split([len(layer[n]) for n in names]), strict=True))
        return inputs

    def balance(value: Tensor, reader: str, writer: str, share: float, repeats: int) -> Tensor:
        size = value.square().mean(0).sqrt().clamp(min=1e-6)
        norm = layer[reader].norm(dim=0).clamp(min=1e-6)
        if repeats > 1:
            heads = (decoder.sizes.kv_heads, repeats, decoder.sizes.head_dim)
            size, norm = (
                v.square().unflatten(0, heads).mean(1, keepdim=True).sqrt() for v in (size, norm)
            )
        s = (size / norm) ** share
        layer[writer] = layer[writer] / s.flatten()[:, None]
        rounded[writer] = rounded[writer] / s.flatten()[:, None]
        if f"{writer}_bias" in layer:
            rounded[f"{writer}_bias"] = layer[f"{writer}_bias"] / s.flatten()
        wide = s.expand(-1, repeats, -1).flatten() if repeats > 1 else s
        layer[reader] = layer[reader] * wide
        return value / wide

    h = step("qkv", rms_norm(x, layer["input_norm"], eps))
    q, k, v = (projected(rounded, name, h) for name in GROUPS["qkv"])
    mixed = attend(q, k, v, layout, decoder.sizes)
    if recipe.balances_values:
        repeats = decoder.sizes.heads // decoder.sizes.kv_heads
        mixed = balance(mixed, "o", "v", recipe.balances_values, repeats)
    x = x + projected(rounded, "o", step("o", mixed))
    h = step("gate_up", rms_norm(x, layer["post_norm"], eps))
    gated = functional.silu(projected(rounded, "gate", h)) * projected(rounded, "up", h)
    if recipe.balances:
        gated = balance(gated, "down", "up", recipe.balances, 1)
    x = x + projected(rounded, "down", step("down", gated))
    return rounded, x


def exported_decoder(
    exact: Decoder, rounded: Decoder, head: Tensor, recipe: ExportedRecipe
) -> Decoder:
    """Return the decoder with rounded inputs and lm_head, and float32 where the recipe says so.

    Args:
        exact: the decoder in float32.
        rounded: the result of `round_exported`.
        head: the rounded lm_head and embeddings.
        recipe: the way to round.
    """
    layers = [dict(layer) for layer in rounded.layers]
    if recipe.exact_weights:
        for i, layer in enumerate(transformed(exact, recipe).layers):
            for group, names in GROUPS.items():
                if is_in(recipe.exact_weights, group, i):
                    layers[i] |= {name: read(recipe, group, layer[name]) for name in names}

    def round_any_input(layer: int, group: str, x: Tensor, runs: Tensor) -> Tensor:
        del runs
        if group != "head":
            return round_input(recipe, layer, group, x)
        is_exact = recipe.refined < 0 or not recipe.rounds_head
        return x if is_exact else round_blocks(x, 128)

    return rounded.changed(
        layers=layers,
        embed=head if recipe.rounds_embed else exact.embed,
        head=head if recipe.rounds_head else exact.head,
        round_input=round_any_input,
        refined=max(recipe.refined, 0),
    )
