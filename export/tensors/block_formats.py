"""The number format of every product of a quantised decoder, as data. Standard library only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

# The linear layers of a decoder layer, by their names in the graph. Queries, keys and values form
# one product, and so do gate and up.
PRODUCTS: Final = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")


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
class DecoderFormats:
    """The formats of all products of a decoder.

    Attributes:
        default: the format of every product that `others` does not name.
        others: other formats, by layer (counted from 0) and product.
    """

    default: BlockFormat
    others: Mapping[tuple[int, str], BlockFormat] = field(default_factory=dict)

    def of(self, layer: int, product: str) -> BlockFormat:
        """Return the format of one product of one layer."""
        return self.others.get((layer, product), self.default)


# An error in the attention of the first layers spreads to all later layers: 0.8 % more bytes there
# remove half of int4's divergence. docs/quantisation.md has the figures.
EARLY_LAYERS: Final = 4
INT4_FORMATS: Final = DecoderFormats(
    BlockFormat(bits=4, block_size=128),
    {
        (layer, product): BlockFormat(bits=8, block_size=128)
        for layer in range(EARLY_LAYERS)
        for product in ("qkv_proj", "o_proj")
    },
)
