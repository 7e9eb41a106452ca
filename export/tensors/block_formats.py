"""The number format of every weight of a quantised decoder, as data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from fastvlm_onnx.export.tensors.quantization import INT4_BLOCK, INT8_BLOCK

# The linear layers of a decoder layer by their names in the graph, and the weights of each.
PRODUCTS: Final[Mapping[str, tuple[str, ...]]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "o_proj": ("o_proj",),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "down_proj": ("down_proj",),
}
ATTENTION: Final = (*PRODUCTS["qkv_proj"], *PRODUCTS["o_proj"])


@dataclass(frozen=True)
class BlockFormat:
    """Integers in blocks along the rows of a weight.

    Attributes:
        bits: 4, with a zero point for each block, or 8.
        block_size: consecutive values of a row that share a scale: 16, 32, 64, 128 or 256.
    """

    bits: int
    block_size: int


@dataclass(frozen=True)
class BlockGroup:
    """Weights of one product that have the same format, and form one product in the graph.

    Attributes:
        name: the product's name where the group holds all of its weights, such as "qkv_proj";
            otherwise a name of the weights, such as "k_v_proj".
        weights: names of the weights.
        form: their format.
    """

    name: str
    weights: tuple[str, ...]
    form: BlockFormat


@dataclass(frozen=True)
class DecoderFormats:
    """The formats of all weights of a decoder.

    Attributes:
        default: the format of every weight that no other attribute names.
        weights: other formats of weights in all layers, by weight, such as "v_proj".
        others: other formats of single weights, by layer (counted from 0) and weight, such as
            (3, "v_proj").
    """

    default: BlockFormat
    weights: Mapping[str, BlockFormat] = field(default_factory=dict)
    others: Mapping[tuple[int, str], BlockFormat] = field(default_factory=dict)

    def groups(self, layer: int, product: str) -> list[BlockGroup]:
        """Return the weights of a product in groups of one format, in their order."""
        groups: list[BlockGroup] = []
        for weight in PRODUCTS[product]:
            everywhere = self.weights.get(weight, self.default)
            form = self.others.get((layer, weight), everywhere)
            names: tuple[str, ...] = (weight,)
            if groups and groups[-1].form == form:
                names = (*groups.pop().weights, weight)
            stem = "_".join(name.removesuffix("_proj") for name in names)
            name = product if names == PRODUCTS[product] else f"{stem}_proj"
            groups.append(BlockGroup(name, names, form))
        return groups


# Attention in int8 costs 3.8 % more bytes and no time, for an error there spreads to all later
# layers and positions. docs/quantisation.md has the figures.
INT4_FORMATS: Final = DecoderFormats(
    BlockFormat(bits=4, block_size=INT4_BLOCK),
    dict.fromkeys(ATTENTION, BlockFormat(bits=8, block_size=INT8_BLOCK)),
)
