"""The weights of an int4 MLP, of whose channels the salient have 8 bits. Numpy only.

The channels of an MLP may stand in any order, so the salient channels come first. A weight of 8
bits is two weights of 4 bits: with 16 high + low = q + 128 for q in -127 .. 127,

    scale q = 16 scale (high - 8) + scale (low - 0).

So a salient channel has a second row in the gate and up projections, and a second column in the
down projection. The products stay products of 4 bits:

    gate_up_proj   rows     high of gate | high of up | low of gate | low of up | gate | up
    down_proj      columns  high | low | the other channels

Source: the name, AWQ (arXiv 2306.00978).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastvlm_onnx.export.tensors.lazy_array import FloatArray
from fastvlm_onnx.export.tensors.quantization import Blocks, dequantize_blocks, pack_int4_blocks


@dataclass(frozen=True)
class BlockIntegers:
    """A weight in blocks, before it is packed.

    Attributes:
        integers: int8 [out, in].
        scales: float32 [out, blocks].
        zeros: zero points, uint8 [out, blocks]; an integer of 4 bits plus its zero point is in
            0 .. 15. Those of 8 bits are not used.
    """

    integers: NDArray[np.int8]
    scales: FloatArray
    zeros: NDArray[np.uint8]

    def columns(self, start: int, stop: int | None, block_size: int) -> "BlockIntegers":
        """Return some columns; start and stop are at the borders of blocks."""
        blocks = slice(start // block_size, None if stop is None else stop // block_size)
        return BlockIntegers(
            self.integers[:, start:stop], self.scales[:, blocks], self.zeros[:, blocks]
        )

    def halves(self) -> tuple["BlockIntegers", "BlockIntegers"]:
        """Return the high and the low 4 bits of integers of 8 bits, whose sum is the weight."""
        stored = self.integers.view(np.uint8) ^ np.uint8(128)
        high = (stored >> 4).astype(np.int8) - np.int8(8)
        low = (stored & 15).astype(np.int8)
        return (
            BlockIntegers(high, self.scales * np.float32(16), np.full_like(self.zeros, 8)),
            BlockIntegers(low, self.scales, np.zeros_like(self.zeros)),
        )


def pack_salient_rows(salient: BlockIntegers, others: BlockIntegers, block_size: int) -> Blocks:
    """Pack a gate_up_proj.

    Args:
        salient: the salient channels of gate, then those of up, in 8 bits.
        others: the other channels of gate, then those of up, in 4 bits.
        block_size: the values in a block.
    """
    return _pack([*salient.halves(), others], 0, block_size)


def pack_salient_columns(weight: BlockIntegers, count: int, block_size: int) -> Blocks:
    """Pack a down_proj whose first `count` columns are in 8 bits, and the others in 4."""
    salient = weight.columns(0, count, block_size)
    return _pack([*salient.halves(), weight.columns(count, None, block_size)], 1, block_size)


def _pack(parts: list[BlockIntegers], axis: int, block_size: int) -> Blocks:
    integers, scales, zeros = (
        np.concatenate([getattr(part, name) for part in parts], axis)
        for name in ("integers", "scales", "zeros")
    )
    return pack_int4_blocks(integers, scales, zeros, block_size)


def unpack_salient_rows(
    blocks: Blocks, channels: NDArray[np.int64], count: int, intermediate_size: int, in_size: int
) -> FloatArray:
    """Return some rows of the gate_up_proj that `pack_salient_rows` packed, float32.

    Args:
        blocks: the packed weight.
        channels: rows of gate and up, one below the other, in 0 .. 2 * intermediate_size - 1.
        count: the number of salient channels.
        intermediate_size: the number of channels of the MLP.
        in_size: the number of input channels.
    """
    channel, is_up = channels % intermediate_size, channels >= intermediate_size
    is_salient = channel < count
    rows = np.where(
        is_salient,
        channel + count * is_up,
        3 * count + channel + (intermediate_size - count) * is_up,
    )
    found = _rows(blocks, rows, in_size)
    if is_salient.any():
        found[is_salient] += _rows(blocks, rows[is_salient] + 2 * count, in_size)
    return found


def _rows(blocks: Blocks, rows: NDArray[np.int64], in_size: int) -> FloatArray:
    assert blocks.zero_points is not None
    chosen = Blocks(blocks.packed[rows], blocks.scales[rows], blocks.zero_points[rows])
    return dequantize_blocks(chosen, in_size)


def unpack_salient_columns(blocks: Blocks, count: int, in_size: int) -> FloatArray:
    """Return rows of the down_proj that `pack_salient_columns` packed, float32 [out, in_size]."""
    found = dequantize_blocks(blocks, in_size + count)
    high, low = found[:, :count], found[:, count : 2 * count]
    return np.concatenate([high + low, found[:, 2 * count :]], axis=1)
