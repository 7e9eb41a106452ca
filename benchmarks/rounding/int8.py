"""Round a decoder to int8: weights, and activations with scales for tokens, blocks or groups."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rounding.decoder import GROUPS, Decoder, Layer, Layout, layer_inputs
from rounding.gptq import damped, gptq
from rounding.integers import Spec, hadamard, nearest, round_blocks, round_tokens
from torch import Tensor

HEAD = Spec(8, 128)


@dataclass(frozen=True)
class Int8Recipe:
    """A way to round weights and activations to int8.

    Attributes:
        weights: integers of the weights by group ("" for all others); block 0 is a scale a row.
        activations: how a group's input is rounded ("" for all others): token, float, block N
            (a scale for N columns), groups N (columns sorted by size, in N groups of equal width),
            top N (the N largest columns apart), tiers N (N groups whose widths double, the largest
            columns first), split N (N groups of the widths that dynamic programming finds), keep N
            (the N largest columns stay float32), keepgroups N G (and the rest in G groups).
        statistic: the size of a column: max, rms, or relative (rms of x / the token's maximum).
        smooth: exponent of the folded scales by place (norm1, norm2, up).
        smooth_columns: only so many columns of the largest maxima are scaled; 0 for all.
        hadamard: size of the Hadamard blocks before the down projections; 0 for none.
        rotates: the residual stream is rotated.
        rounds_weights: False leaves the layers' weights in float32.
        rounds_head: False leaves lm_head and the embeddings in float32.
        method: nearest or gptq.
        damping: of GPTQ.
        head: how the input of lm_head is rounded: block N, or float.
        head_spec: the integers of lm_head and the embeddings.
        head_method: nearest or gptq.
        head_places: the places of the rounded matrix: "head embed", or one of them.
        texts: the number of calibration texts.
    """

    weights: tuple[tuple[str, int], ...] = (("", 0),)
    activations: tuple[tuple[str, str], ...] = (("", "token"),)
    statistic: str = "max"
    smooth: tuple[tuple[str, float], ...] = ()
    smooth_columns: int = 0
    hadamard: int = 0
    rotates: bool = False
    method: str = "nearest"
    damping: float = 0.05
    rounds_weights: bool = True
    rounds_head: bool = True
    head: str = "block 128"
    head_spec: Spec = HEAD
    head_method: str = "nearest"
    head_places: str = "head embed"
    texts: int = 16

    def way(self, group: str) -> str:
        found = dict(self.activations)
        return found.get(group, found[""])

    def block(self, group: str) -> int:
        found = dict(self.weights)
        return found.get(group, found[""])


def rotation_of(size: int, device: torch.device | str) -> Tensor:
    """Return an orthogonal matrix: a random one of the odd factor, and a Hadamard; random signs."""
    power = size & -size
    generator = torch.Generator().manual_seed(0)
    odd, _ = torch.linalg.qr(torch.randn(size // power, size // power, generator=generator))
    signs = torch.randint(0, 2, (size,), generator=generator).float() * 2 - 1
    return signs.to(device)[:, None] * torch.kron(
        odd.contiguous().to(device), hadamard(power, device)
    )


def hadamard_blocks(x: Tensor, size: int) -> Tensor:
    return (x.contiguous().unflatten(-1, (-1, size)) @ hadamard(size, x.device)).flatten(-2)


def rotate(decoder: Decoder, r: Tensor | None = None) -> Decoder:
    """Return the same function with a rotated residual stream (QuaRot, arXiv 2404.00456).

    Args:
        decoder: in float32.
        r: an orthogonal matrix [hidden_size, hidden_size]; that of `rotation_of` when None.
    """
    r = rotation_of(len(decoder.norm), decoder.device) if r is None else r
    layers = []
    for layer in decoder.layers:
        new = dict(layer)
        for names, norm in (("q k v", "input_norm"), ("gate up", "post_norm")):
            for name in names.split():
                new[name] = (layer[name] * layer[norm]) @ r
            new[norm] = torch.ones_like(layer[norm])
        new["o"], new["down"] = r.T @ layer["o"], r.T @ layer["down"]
        layers.append(new)
    return decoder.changed(layers=layers, rotation=r)


@dataclass
class Sizes:
    """The size of each column of a group's input in calibration, by statistic."""

    max: Tensor
    rms: Tensor
    relative: Tensor

    @staticmethod
    def of(x: Tensor) -> "Sizes":
        peak = x.abs().amax(-1, keepdim=True).clamp(min=1e-30)
        return Sizes(x.abs().amax(0), x.square().mean(0).sqrt(), (x / peak).square().mean(0).sqrt())


def smoothed(layer: Layer, inputs: dict[str, Tensor], recipe: Int8Recipe) -> Layer:
    """Move the size of large activations into the weights that read them; the same function.

    `inputs` are divided by the scales in place.
    """
    shares, layer = dict(recipe.smooth), dict(layer)
    for place, group in (("norm1", "qkv"), ("norm2", "gate_up"), ("up", "down")):
        if place not in shares:
            continue
        peak = inputs[group].abs().amax(0).clamp(min=1e-5)
        if recipe.smooth_columns:
            # Only the extremes are scaled, towards the largest of the rest.
            limit = peak.sort(descending=True).values[min(recipe.smooth_columns, len(peak) - 1)]
            s = (peak / limit).clamp(min=1) ** shares[place]
        else:
            weight = torch.cat([layer[name] for name in GROUPS[group]]).abs().amax(0)
            s = peak ** shares[place] / weight.clamp(min=1e-5) ** (1 - shares[place])
        for name in GROUPS[group]:
            layer[name] = layer[name] * s
        if place == "up":
            layer["up"] = layer["up"] / s[:, None]
        else:
            norm = "input_norm" if place == "norm1" else "post_norm"
            layer[norm] = layer[norm] / s
        inputs[group] = inputs[group] / s
    return layer


def columns_of(way: str, size: Tensor) -> tuple[list[Tensor], Tensor | None]:
    """Return the groups of columns that share a scale, and the columns that stay float32."""
    kind, *counts = way.split()
    numbers = [int(x) for x in counts]
    order = size.argsort(descending=True)
    if kind == "groups":
        return list(order.tensor_split(numbers[0])), None
    if kind == "top":
        return [order[: numbers[0]], order[numbers[0] :]], None
    if kind == "tiers":
        widths, left = [], len(order)
        for _ in range(numbers[0] - 1):
            widths.append(left - left // 2)
            left //= 2
        return list(order.split([left, *widths[::-1]])), None
    if kind == "split":
        return list(order.split(best_widths(size[order].cpu(), numbers[0]))), None
    if kind == "keep":
        return [order[numbers[0] :]], order[: numbers[0]]
    if kind == "keepgroups":
        return list(order[numbers[0] :].tensor_split(numbers[1])), order[: numbers[0]]
    return [], None


def best_widths(sizes: Tensor, groups: int, unit: int = 32) -> list[int]:
    """Cut sorted sizes into groups with the least sum of width * (largest size)^2."""
    heads = [float(x) ** 2 for x in sizes[::unit]]
    count = len(heads)
    cost = {(0, 0): 0.0}
    back: dict[tuple[int, int], int] = {}
    for group in range(1, groups + 1):
        for stop in range(group, count + 1):
            options = [
                (cost[start, group - 1] + (stop - start) * heads[start], start)
                for start in range(group - 1, stop)
                if (start, group - 1) in cost
            ]
            cost[stop, group], back[stop, group] = min(options)
    widths, stop = [], count
    for group in range(groups, 0, -1):
        start = back[stop, group]
        widths.append((stop - start) * unit)
        stop = start
    widths = widths[::-1]
    widths[-1] -= sum(widths) - len(sizes)
    return widths


def round_decoder(decoder: Decoder, recipe: Int8Recipe, ids: Sequence[Tensor]) -> Decoder:
    """Return the decoder with rounded layers and inputs; lm_head stays as it is.

    Args:
        decoder: in float32.
        recipe: the way to round.
        ids: token ids of the calibration texts.
    """
    if recipe.rotates:
        decoder = rotate(decoder)
    if recipe.hadamard:
        layers = [
            layer | {"down": hadamard_blocks(layer["down"], recipe.hadamard)}
            for layer in decoder.layers
        ]
        decoder = decoder.changed(layers=layers)
    groups: list[dict[str, tuple[list[Tensor], Tensor | None]]] = []
    rounded = []
    tokens = torch.cat(list(ids)).to(decoder.device)
    layout = Layout.of_lengths([len(x) for x in ids], decoder.device)
    x = decoder.embed[tokens]
    if decoder.rotation is not None:
        x = x @ decoder.rotation
    for layer in decoder.layers:
        inputs = _exact_inputs(decoder, layer, x, layout, recipe.hadamard)
        x = inputs.pop("next")
        new = smoothed(layer, inputs, recipe)
        own = {}
        for group, names in GROUPS.items():
            size = getattr(Sizes.of(inputs[group]), recipe.statistic)
            own[group] = columns_of(recipe.way(group), size)
            if recipe.rounds_weights:
                for name in names:
                    new[name] = _round_weight(new[name], recipe, group, own[group], inputs[group])
        groups.append(own)
        rounded.append(new)

    def round_input(layer: int, group: str, x: Tensor, runs: Tensor) -> Tensor:
        if group == "head":
            return x if recipe.head == "float" else round_blocks(x, int(recipe.head.split()[1]))
        if group == "down" and recipe.hadamard:
            x = hadamard_blocks(x, recipe.hadamard)
        way = recipe.way(group)
        if way == "float":
            return x
        if way.startswith("block"):
            return round_blocks(x, int(way.split()[1]))
        columns, _ = groups[layer][group]
        if not columns:
            return round_tokens(x, runs)
        result = x.clone()
        for own in columns:
            result[:, own] = round_tokens(x[:, own], runs)
        return result

    return decoder.changed(layers=rounded, round_input=round_input)


def _exact_inputs(
    decoder: Decoder, layer: Layer, x: Tensor, layout: Layout, size: int
) -> dict[str, Tensor]:
    if not size:
        return layer_inputs(decoder, layer, x, layout)
    plain = layer | {"down": hadamard_blocks(layer["down"], size)}
    inputs = layer_inputs(decoder, plain, x, layout)
    return inputs | {"down": hadamard_blocks(inputs["down"], size)}


def _round_weight(
    weight: Tensor,
    recipe: Int8Recipe,
    group: str,
    columns: tuple[list[Tensor], Tensor | None],
    x: Tensor,
) -> Tensor:
    """Round the weight with scales for the groups of columns that are products of their own."""
    spec = Spec(8, recipe.block(group))
    parts = columns[0] or [torch.arange(weight.shape[1], device=weight.device)]
    result = weight.clone()
    hessian = damped(x.T @ x, recipe.damping, True) if recipe.method == "gptq" else None
    for own in parts:
        if hessian is None:
            result[:, own] = nearest(weight[:, own], spec)
            continue
        part = hessian[own][:, own]
        result[:, own], _ = gptq(weight[:, own], part, spec)
    return result


def extra_bytes(recipe: Int8Recipe, layers: Sequence[Layer]) -> int:
    """Return the bytes beyond int8 weights with a scale for each row."""
    total = 0
    for layer in layers:
        for group, names in GROUPS.items():
            kind, *numbers = recipe.way(group).split()
            for name in names:
                rows, width = layer[name].shape
                parts, kept = 1, 0
                if kind in ("groups", "tiers", "split"):
                    parts = int(numbers[0])
                elif kind == "top":
                    parts = 2
                elif kind in ("keep", "keepgroups"):
                    kept = int(numbers[0])
                    parts = int(numbers[1]) if kind == "keepgroups" else 1
                block = recipe.block(group)
                scales = -(-width // block) if block else parts
                total += rows * (scales - 1) * 4 + rows * kept * 3
    return total
