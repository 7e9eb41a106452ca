"""The number format of every linear layer of a quantised decoder, as data."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
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
        has_bfloat16_scales: the scales are stored in bfloat16. They are rounded before the integers
            are chosen, so they cost almost nothing. ONNX Runtime casts them when it loads a graph.
    """

    bits: int
    block_size: int
    has_bfloat16_scales: bool = False


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

# A calibration chooses the integers for the scales as they are stored.
CALIBRATED_FORMATS: Final[BlockFormats] = {
    product: replace(form, has_bfloat16_scales=True) for product, form in INT4_FORMATS.items()
}

# A calibration gives this share of an MLP's channels 8 bits, in whole blocks. Their part of the
# bytes is small, and their part of the error is not; docs/quantisation.md has the figures.
SALIENT_SHARE: Final = 0.055


def salient_channels(formats: BlockFormats, intermediate_size: int) -> int:
    """Return the number of an MLP's channels that a calibration gives 8 bits.

    It is at least a block, and 0 where the MLP has a single block or no 4 bits.
    """
    form = formats["down_proj"]
    if form.bits != 4 or formats["gate_up_proj"].bits != 4 or intermediate_size <= form.block_size:
        return 0
    blocks = max(1, int(intermediate_size * SALIENT_SHARE) // form.block_size)
    return blocks * form.block_size
