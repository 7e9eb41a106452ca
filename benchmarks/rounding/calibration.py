"""Round a decoder layer by layer on the activations that the rounded layers before it give."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from rounding.decoder import (
    ATTENTION,
    GROUPS,
    Decoder,
    Layer,
    Layout,
    attend,
    layer_inputs,
    projected,
    rms_norm,
)
from rounding.gptq import damped, descend, gptq, inverse_factor, refit
from rounding.integers import Spec, nearest, searched
from torch import Tensor
from torch.nn import functional

AWQ_SHARES: Final = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
EARLY_LAYERS: Final = 4
Rule = tuple[str, int, int, Spec]
"""Matrices ("q k v"), first layer, layer after the last, and their integers."""


@dataclass(frozen=True)
class Recipe:
    """A way to round the decoder's layers to int4 or int8.

    Attributes:
        rules: the integers of each matrix; a later rule replaces an earlier rule.
        method: nearest, or gptq.
        damping: the share of the diagonal that is added to the Hessian's diagonal.
        down_damping: the same for the down projections; 0 for `damping`.
        damps_columns: each column's own diagonal counts; False takes the mean.
        by_activation: GPTQ rounds the columns of the largest inputs first.
        uses_importance: scales are chosen by the output's error (the Hessian's diagonal).
        weighs_tokens: a token counts by 1 / mean square of the residual stream that its output is
            added to, in o and down.
        target: own: the output of the float32 weight on the rounded stream. fp32: the output in
            the float32 decoder. residual: the float32 decoder's residual stream after the addition.
        strength: the share of the correction towards the target, 0 .. 1.
        refits: scales are chosen again by least squares.
        descents: passes of coordinate descent after GPTQ.
        awq: the shares of AWQ's search; empty for no folded scales.
        awq_places: the folds that AWQ may use.
        sorts: the intermediate channels are ordered by the size of their activations.
        corrects_bias: the mean error of o and down becomes their bias.
        texts: the number of calibration texts.
        chosen: name of the calibration set.
        rounds_int8_to_nearest: matrices of 8 bits are not calibrated.
    """

    rules: tuple[Rule, ...] = ()
    method: str = "nearest"
    damping: float = 0.05
    down_damping: float = 0
    damps_columns: bool = True
    by_activation: bool = False
    uses_importance: bool = True
    weighs_tokens: bool = False
    target: str = "own"
    strength: float = 1.0
    refits: bool = False
    descents: int = 0
    awq: tuple[float, ...] = ()
    awq_places: str = "qkv gate_up down o"
    sorts: bool = False
    corrects_bias: bool = False
    texts: int = 64
    chosen: str = "chat"
    rounds_int8_to_nearest: bool = False

    def spec(self, layer: int, name: str) -> Spec:
        found = Spec()
        for names, first, stop, spec in self.rules:
            if name in names.split() and first <= layer < stop:
                found = spec
        return found

    def size_bytes(self, layers: Sequence[Layer]) -> int:
        return sum(
            self.spec(i, name).size_bytes(*layer[name].shape)
            for i, layer in enumerate(layers)
            for names in GROUPS.values()
            for name in names
        )


def rules(block: int = 128, *more: Rule, early: bool = True) -> tuple[Rule, ...]:
    """Return int4 in blocks, the attention of the first layers in int8, and further rules."""
    int4 = Spec(4, block)
    first: list[Rule] = [("q k v o gate up down", 0, 10**6, int4)]
    if early:
        first.append((" ".join(ATTENTION), 0, EARLY_LAYERS, Spec(8, 128)))
    return (*first, *more)


TODAY: Final = Recipe(rules())


@dataclass
class Stream:
    """The residual stream of the calibration's tokens, in the rounded and the float32 decoder."""

    layout: Layout
    x: Tensor
    exact: Tensor | None


def round_layers(decoder: Decoder, recipe: Recipe, ids: Sequence[Tensor], embed: Tensor) -> Decoder:
    """Return the decoder with rounded layers.

    Args:
        decoder: in float32.
        recipe: the way to round.
        ids: the token ids of each calibration text.
        embed: the rounded token embeddings.
    """
    if recipe.method == "nearest" and not (recipe.awq or recipe.corrects_bias):
        layers = [
            layer
            | {
                name: nearest(layer[name], recipe.spec(i, name))
                for names in GROUPS.values()
                for name in names
            }
            for i, layer in enumerate(decoder.layers)
        ]
        return decoder.changed(layers=layers)
    tokens = torch.cat(list(ids)).to(decoder.device)
    layout = Layout.of_lengths([len(x) for x in ids], decoder.device)
    needs_exact = recipe.target != "own" or recipe.corrects_bias
    stream = Stream(layout, embed[tokens], decoder.embed[tokens] if needs_exact else None)
    layers = []
    for i, layer in enumerate(decoder.layers):
        layers.append(_round_layer(decoder, layer, i, recipe, stream))
    return decoder.changed(layers=layers)


def _round_layer(
    decoder: Decoder, layer: Layer, index: int, recipe: Recipe, stream: Stream
) -> Layer:
    eps = decoder.sizes.eps
    if recipe.awq or recipe.sorts:
        layer = _fold(decoder, layer, index, recipe, stream)
    rounded = dict(layer)

    def step(group: str, x: Tensor, exact: Tensor | None, weights: Tensor | None) -> None:
        offset = None
        if recipe.target == "residual" and group in ("o", "down") and stream.exact is not None:
            offset = stream.exact - stream.x
        _round_group(rounded, layer, group, index, recipe, x, exact, weights, offset)

    x, exact = stream.x, stream.exact

    def norm(value: Tensor | None, name: str) -> Tensor | None:
        return None if value is None else rms_norm(value, layer[name], eps)

    def mixed(value: Tensor | None, source: Layer) -> Tensor | None:
        if value is None:
            return None
        q, k, v = (projected(source, name, value) for name in GROUPS["qkv"])
        return attend(q, k, v, stream.layout, decoder.sizes)

    def gated(value: Tensor | None, source: Layer) -> Tensor | None:
        if value is None:
            return None
        return functional.silu(projected(source, "gate", value)) * projected(source, "up", value)

    def token_weights() -> Tensor | None:
        if not recipe.weighs_tokens:
            return None
        return 1 / (stream.x.square().mean(-1) + 1e-6)

    h, h_exact = norm(x, "input_norm"), norm(exact, "input_norm")
    step("qkv", h, h_exact, None)
    a, a_exact = mixed(h, rounded), mixed(h_exact, layer)
    step("o", a, a_exact, token_weights())
    stream.x = x + projected(rounded, "o", a)
    if exact is not None:
        stream.exact = exact + projected(layer, "o", a_exact)
    h, h_exact = norm(stream.x, "post_norm"), norm(stream.exact, "post_norm")
    step("gate_up", h, h_exact, None)
    g, g_exact = gated(h, rounded), gated(h_exact, layer)
    step("down", g, g_exact, token_weights())
    stream.x = stream.x + projected(rounded, "down", g)
    if exact is not None:
        stream.exact = stream.exact + projected(layer, "down", g_exact)
    return rounded


def _round_group(
    rounded: Layer,
    layer: Layer,
    group: str,
    index: int,
    recipe: Recipe,
    x: Tensor,
    exact: Tensor | None,
    weights: Tensor | None,
    offset: Tensor | None,
) -> None:
    """Round the matrices that read x, and put them into `rounded`."""
    names = GROUPS[group]
    if weights is not None:
        weights = weights / weights.mean()
    weighted = x if weights is None else x * weights[:, None]
    damping = recipe.damping
    if group == "down":
        damping = recipe.down_damping or damping
    hessian = damped(weighted.T @ x, damping, recipe.damps_columns)
    targets = {name: layer[name] for name in names}
    if exact is not None and recipe.target != "own":
        solver = torch.linalg.cholesky(hessian.double())

        def correction(wanted: Tensor) -> Tensor:
            # wanted^T X (X^T X)^-1
            return torch.cholesky_solve((weighted.T @ wanted).double(), solver).T.float()

        moved = correction(exact - x)
        for name in names:
            targets[name] = layer[name] + recipe.strength * (layer[name] @ moved)
            if offset is not None:
                targets[name] += recipe.strength * correction(offset)
    by_spec: dict[Spec, list[str]] = {}
    for name in names:
        by_spec.setdefault(recipe.spec(index, name), []).append(name)
    factor = None
    for spec, own in by_spec.items():
        weight = torch.cat([targets[name] for name in own])
        if spec.bits == 32:
            found = weight
        elif spec.bits == 8 and recipe.rounds_int8_to_nearest:
            found = nearest(torch.cat([layer[name] for name in own]), spec)
        elif recipe.method == "gptq":
            if factor is None:
                order = hessian.diagonal().argsort(descending=True)
                ordered = hessian[order][:, order] if recipe.by_activation else hessian
                factor = inverse_factor(ordered)
            found, grid = gptq(
                weight,
                hessian,
                spec,
                recipe.by_activation,
                recipe.uses_importance,
                factor,
            )
            if recipe.refits:
                found, grid = refit(found, weight, hessian, grid, spec.block)
            if recipe.descents:
                found = descend(found, weight, hessian, grid, spec.block, recipe.descents)
            if recipe.refits and recipe.descents:
                found, grid = refit(found, weight, hessian, grid, spec.block)
        else:
            counts = hessian.diagonal() if recipe.awq and recipe.uses_importance else None
            found = searched(weight, spec, counts) if spec.bits == 4 else nearest(weight, spec)
        rounded.update(zip(own, found.split([len(layer[name]) for name in own]), strict=True))
    if recipe.corrects_bias and group in ("o", "down") and exact is not None:
        (name,) = names
        wanted = exact @ layer[name].T - x @ rounded[name].T
        share = torch.ones_like(x[:, :1]) if weights is None else weights[:, None]
        rounded[f"{name}_bias"] = (wanted * share).mean(0) / share.mean()


# --- exact changes of a layer ---------------------------------------------------------------------


def _fold(decoder: Decoder, layer: Layer, index: int, recipe: Recipe, stream: Stream) -> Layer:
    """Scale (AWQ) and order channels so that float32's output stays the same."""
    layer, sizes = dict(layer), decoder.sizes
    if recipe.sorts:
        g = layer_inputs(decoder, layer, stream.x, stream.layout)["down"]
        order = g.square().mean(0).argsort(descending=True)
        layer["gate"], layer["up"] = layer["gate"][order], layer["up"][order]
        layer["down"] = layer["down"][:, order].contiguous()
    if not recipe.awq:
        return layer
    inputs = layer_inputs(decoder, layer, stream.x, stream.layout)
    for group in recipe.awq_places.split():
        if group == "o":
            continue
        found = _awq_scales(layer, GROUPS[group], inputs[group], index, recipe)
        for name in GROUPS[group]:
            layer[name] = layer[name] * found
        if group == "down":
            layer["up"] = layer["up"] / found[:, None]
        else:
            norm = "input_norm" if group == "qkv" else "post_norm"
            layer[norm] = layer[norm] / found
    if "o" in recipe.awq_places.split():
        # A head of values feeds several heads of queries: they share a scale.
        repeats = sizes.heads // sizes.kv_heads
        a = inputs["o"]
        mean = a.abs().mean(0).unflatten(0, (sizes.kv_heads, repeats, sizes.head_dim)).mean(1)
        found = _awq_scales(
            layer,
            ("o",),
            a,
            index,
            recipe,
            mean,
            lambda s: s[:, None].expand(-1, repeats, -1).flatten(),
        )
        shared = found.unflatten(0, (sizes.kv_heads, repeats, sizes.head_dim))[:, 0].flatten()
        layer["o"] = layer["o"] * found
        layer["v"] = layer["v"] / shared[:, None]
        layer["v_bias"] = layer["v_bias"] / shared
    return layer


def _awq_scales(
    layer: Layer,
    names: tuple[str, ...],
    x: Tensor,
    index: int,
    recipe: Recipe,
    mean: Tensor | None = None,
    spread: Callable[[Tensor], Tensor] = lambda s: s,
) -> Tensor:
    """Return the scales of the share with the smallest error of the output."""
    mean = (x.abs().mean(0) if mean is None else mean).clamp(min=1e-8)
    hessian, best, best_error = x.T @ x, torch.ones_like(x[0]), None
    for share in recipe.awq:
        s = mean**share
        s = spread(s / (s.amax() * s.amin()).sqrt())
        error = 0.0
        for name in names:
            spec = recipe.spec(index, name)
            counts = hessian.diagonal() / s.square() if recipe.uses_importance else None
            scaled = layer[name] * s
            close = searched(scaled, spec, counts) if spec.bits == 4 else nearest(scaled, spec)
            off = close / s - layer[name]
            error += float(((off @ hessian) * off).sum())
        if best_error is None or error < best_error:
            best, best_error = s, error
    return best
