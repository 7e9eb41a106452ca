"""The number format of every linear layer of a quantised decoder, as data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fastvlm_onnx.export.tensors.quantization import INT4_BLOCK, INT8_BLOCK

# The linear layers of a decoder layer by their names in the graph, and the weights of each.
PRODUCTS: Final[Mapping[str, tuple[str, ...]]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "o_proj": ("o_proj",),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "down_proj": ("down_proj",),
}


@dataclass(frozen=True)
class BlockFormat:
    """Integers in blocks along the rows of a weight.

    Attributes:
        bits: 4, with a zero point for each block, or 8.
        block_size: consecutive values of a row that share a scale: 16, 32, 64, 128 or 256.
    """

    bits: int
    block_size: int


# The format of each linear layer, by its name in PRODUCTS; the same in every decoder layer.
BlockFormats = Mapping[str, BlockFormat]

# Attention in int8 costs 3.8 % more bytes and no time, for an error there spreads to all later
# layers and positions. docs/quantisation.md has the figures.
INT4_FORMATS: Final[BlockFormats] = {
    "qkv_proj": BlockFormat(bits=8, block_size=INT8_BLOCK),
    "o_proj": BlockFormat(bits=8, block_size=INT8_BLOCK),
    "gate_up_proj": BlockFormat(bits=4, block_size=INT4_BLOCK),
    "down_proj": BlockFormat(bits=4, block_size=INT4_BLOCK),
}
