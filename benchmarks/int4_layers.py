"""Linear layers for int4_choices.py: other scales, and mixtures of precisions."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir
from int4_scales import Quantise
from numpy.typing import NDArray
from onnxscript import nn

from fastvlm_onnx.export.graphs.decoder_precisions import LinearFactory, LMHead
from fastvlm_onnx.export.graphs.layers import MICROSOFT, Op, parameter
from fastvlm_onnx.export.graphs.linear import (
    ACCURACY_INT8,
    BlockLinear,
    MatMulNBits,
)
from fastvlm_onnx.export.tensors.lazy_array import LazyArray, stacked
from fastvlm_onnx.export.tensors.quantization import (
    INT4_BLOCK,
    INT8_BLOCK,
    dequantize_blocks,
    quantize_blocks,
)

FloatArray = NDArray[np.float32]

# The number of blocks that one thread works on at a time.
PIECE_BLOCKS = 8192


@dataclass
class WeightError:
    """Sums of squared errors and squared weights over all weights of a trial."""

    error: float = 0.0
    weight: float = 0.0

    def add(self, weight: FloatArray, found: FloatArray) -> None:
        self.error += float(np.square(weight - found, dtype=np.float64).sum())
        self.weight += float(np.square(weight, dtype=np.float64).sum())

    @property
    def relative(self) -> float:
        return (self.error / self.weight) ** 0.5 if self.weight else 0.0


class TrialProduct(nn.Module):
    """MatMulNBits in 4 bits; `quantise` finds the scales and, with `has_zeros`, the zero points."""

    def __init__(
        self,
        weight: LazyArray,
        *,
        quantise: Quantise,
        block_size: int,
        has_zeros: bool,
        error: WeightError,
    ) -> None:
        super().__init__()
        self.out_size, self.in_size = weight.shape
        self.block_size = block_size
        values = weight.read()
        padded = np.pad(values, ((0, 0), (0, -self.in_size % block_size)))
        blocks = padded.reshape(-1, block_size)
        pieces = [blocks[i : i + PIECE_BLOCKS] for i in range(0, len(blocks), PIECE_BLOCKS)]
        with ThreadPoolExecutor(2) as pool:
            done = list(pool.map(quantise, pieces))
        for piece, found in zip(pieces, done, strict=True):
            error.add(piece, found.values())
        count = padded.shape[1] // block_size
        integers = np.concatenate([found.integers for found in done]).astype(np.uint8)
        scales = np.concatenate([found.scales for found in done]).reshape(-1, count)
        zeros = np.concatenate([found.zeros for found in done]).reshape(-1, count)
        packed = pack(integers).reshape(self.out_size, count, -1)
        self.weight = parameter(stored(packed), ir.DataType.UINT8)
        self.scales = parameter(stored(scales))
        self.zeros = None
        if has_zeros:
            even = np.pad(zeros.astype(np.uint8), ((0, 0), (0, count % 2)))
            self.zeros = parameter(stored(pack(even).ravel()), ir.DataType.UINT8)

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        zeros = [] if self.zeros is None else [self.zeros]
        return op.MatMulNBits(
            x,
            self.weight,
            self.scales,
            *zeros,
            K=self.in_size,
            N=self.out_size,
            bits=4,
            block_size=self.block_size,
            accuracy_level=ACCURACY_INT8,
            _domain=MICROSOFT,
        )


def pack(integers: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pack two integers into a byte along the last axis, the first into the lower half."""
    return integers[..., 0::2] | integers[..., 1::2] << np.uint8(4)


def stored(array: NDArray) -> LazyArray:
    return LazyArray(array.shape, lambda: array)


class TrialLinear(BlockLinear):
    """The exporter's BlockLinear with another product."""

    def __init__(
        self,
        weights: Sequence[LazyArray],
        bias: LazyArray | None = None,
        *,
        product: Callable[[LazyArray], nn.Module],
    ) -> None:
        super().__init__(weights, bias, block_size=INT4_BLOCK, bits=4)
        self.product = product(stacked(weights))


def exported_product(weight: LazyArray, error: WeightError) -> MatMulNBits:
    """Make the product that an export has, and record its error."""
    values = weight.read()
    found = dequantize_blocks(quantize_blocks(values, INT4_BLOCK), values.shape[1])
    error.add(values, found)
    return MatMulNBits(weight, INT4_BLOCK, 4)


int4 = partial(BlockLinear, block_size=INT4_BLOCK, bits=4)
int8 = partial(BlockLinear, block_size=INT8_BLOCK, bits=8)
int4_head = partial(MatMulNBits, block_size=INT4_BLOCK, bits=4)
float_head = partial(LMHead, dtype=ir.DataType.FLOAT)

ATTENTION = ("qkv_proj", "o_proj")
KINDS = (*ATTENTION, "gate_up_proj", "down_proj")
EARLY_COUNTS = (1, 2, 4, 8)
Chosen = Callable[[str, int], bool]
"""Returns whether a layer, given its kind and number, belongs to the tested part."""


class Mixture:
    """Makes some layers in one precision and the others in another; layers are made in order."""

    def __init__(self, chosen: Chosen, inside: LinearFactory, outside: LinearFactory) -> None:
        self._chosen, self._inside, self._outside = chosen, inside, outside
        self._made = 0

    def __call__(self, weights: Sequence[LazyArray], bias: LazyArray | None = None) -> nn.Module:
        layer, kind = divmod(self._made, len(KINDS))
        self._made += 1
        linear = self._inside if self._chosen(KINDS[kind], layer) else self._outside
        return linear(weights, bias)


def parts(num_layers: int) -> dict[str, Chosen]:
    """Return the parts of a decoder, besides lm_head, that may need more bits."""
    return {
        **{name: lambda kind, _, name=name: kind == name for name in KINDS},
        "first layer": lambda _, layer: layer == 0,
        "last layer": lambda _, layer: layer == num_layers - 1,
        **{
            f"attention of the first {count}": lambda kind, layer, count=count: (
                kind in ATTENTION and layer < count
            )
            for count in EARLY_COUNTS
            if count < num_layers
        },
    }
