"""Choose the integers of each matrix by the divergence that it causes alone."""

from collections.abc import Sequence
from typing import Final

import torch
from rounding.calibration import TODAY, Rule
from rounding.decoder import Decoder, Layer, Layout, Part, run_layers
from rounding.integers import Spec, searched
from torch import Tensor

# The share of a matrix's divergence that is left in smaller blocks and in int8.
UPGRADES: Final = ((Spec(4, 64), 0.64), (Spec(4, 32), 0.45), (Spec(8, 128), 0.01))
UNITS: Final = ("q", "k", "v", "o", "gate up", "down")


@torch.no_grad()
def sensitivities(exact: Decoder, ids: Sequence[Tensor]) -> list[tuple[int, str, float]]:
    """Return the divergence on calibration texts when one unit alone is int4."""
    ids = [x.to(exact.device) for x in ids]
    layout = Layout.of_lengths([len(x) for x in ids], exact.device)
    tokens = torch.cat(ids)

    def hidden(decoder: Decoder) -> Tensor:
        return run_layers([Part(decoder, decoder.embed[tokens], tokens)], layout)[0]

    wanted, found = hidden(exact), []
    for i, layer in enumerate(exact.layers):
        for unit in UNITS:
            changed: Layer = layer | {
                name: searched(layer[name], Spec(4, 128)) for name in unit.split()
            }
            layers = [*exact.layers]
            layers[i] = changed
            other, total = hidden(exact.changed(layers=layers)), 0.0
            for start in range(0, len(other), 1024):
                piece = slice(start, start + 1024)
                p = torch.log_softmax(wanted[piece] @ exact.head.T, -1)
                q = torch.log_softmax(other[piece] @ exact.head.T, -1)
                total += float((p.exp() * (p - q)).sum())
            found.append((i, unit, total / len(other)))
    return found


def rules_by_sensitivity(
    layers: Sequence[Layer], found: Sequence[tuple[int, str, float]], limit: int
) -> tuple[Rule, ...]:
    """Choose the integers of each unit: the largest gain a byte first, within the limit."""
    values = {(i, unit): x for i, unit, x in found}
    base = Spec(4, 128)
    chosen: dict[tuple[int, str], tuple[Spec, float]] = dict.fromkeys(values, (base, 1.0))

    def size(key: tuple[int, str], spec: Spec) -> int:
        layer = layers[key[0]]
        return sum(spec.size_bytes(*layer[name].shape) for name in key[1].split())

    spare = TODAY.size_bytes(layers) + limit
    spare -= sum(size(key, base) for key in values)
    while True:
        options = []
        for key, (spec, left) in chosen.items():
            for other, share in UPGRADES:
                cost = size(key, other) - size(key, spec)
                if share < left and 0 < cost <= spare:
                    gain = values[key] * (left - share)
                    options.append((gain / cost, key, other, share, cost))
        if not options:
            break
        _, key, spec, share, cost = max(options, key=lambda x: x[0])
        chosen[key], spare = (spec, share), spare - cost
    return tuple((unit, i, i + 1, spec) for (i, unit), (spec, _) in chosen.items())
