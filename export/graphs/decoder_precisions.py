"""The decoder's precisions: the linear layers, lm_head and cache of each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import onnx_ir as ir
from onnxscript import nn

from fastvlm_onnx.export.architecture.config import DecoderConfig
from fastvlm_onnx.export.graphs.decoder_int8 import (
    PerTokenInt8Linear,
    PerTokenInt8MLP,
    RefinedInt8Head,
    SpreadInt8Linear,
)
from fastvlm_onnx.export.graphs.layers import Op, parameter
from fastvlm_onnx.export.graphs.linear import (
    BlockLinear,
    Float16Linear,
    FloatLinear,
    Linear,
    MatMulNBits,
)
from fastvlm_onnx.export.tensors.lazy_array import LazyArray
from fastvlm_onnx.export.tensors.quantization import INT4_BLOCK, INT8_BLOCK
from fastvlm_onnx.export.tensors.weights import Weights

LinearFactory = Callable[..., Linear]
"""Makes a linear layer from torch's weights, and a bias if there is one."""


class LMHead(nn.Module):
    """x @ weight.T for the last position: [B, 1, hidden_size] -> [B, 1, vocab_size].

    The weight is not transposed. It keeps the checkpoint's shape [vocab_size, hidden_size], so it
    can be read and written a few rows at a time.
    """

    def __init__(self, weight: LazyArray, dtype: ir.DataType) -> None:
        super().__init__()
        self.weight = parameter(weight, dtype)
        self.hidden_size, self.dtype = weight.shape[1], dtype

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        rows = op.Reshape(x, [-1, self.hidden_size])
        if self.dtype != ir.DataType.FLOAT:
            rows = op.Cast(rows, to=self.dtype)
        logits = op.Unsqueeze(op.Gemm(rows, self.weight, transB=1), [1])
        return logits if self.dtype == ir.DataType.FLOAT else op.Cast(logits, to=ir.DataType.FLOAT)


@dataclass(frozen=True)
class DecoderPrecision:
    """The layers and the cache of a decoder in one precision.

    Attributes:
        linear: makes every linear layer that no other attribute names.
        lm_head: makes the last layer from a matrix [vocab_size, hidden_size].
        cache_dtype: the dtype of keys and values.
        early_attention_linear: makes the linear layers of attention in the first EARLY_LAYERS
            layers; `linear` makes them when None.
        o_linear: makes the output projection of every attention; the factory of the attention's
            other layers makes it when None.
        down_linear: makes the down projection of every MLP; `linear` makes it when None.
        mlp: makes every MLP from its tensors; `linear` and `down_linear` make its layers when None.
        transforms_stream: the residual stream goes through a Hadamard transform.
    """

    linear: LinearFactory
    lm_head: Callable[[LazyArray], nn.Module]
    cache_dtype: ir.DataType = ir.DataType.FLOAT
    early_attention_linear: LinearFactory | None = None
    o_linear: LinearFactory | None = None
    down_linear: LinearFactory | None = None
    mlp: Callable[[Weights, DecoderConfig], nn.Module] | None = None
    transforms_stream: bool = False

    def attention_linear_of(self, layer: int) -> LinearFactory:
        """Return the factory for the attention of one layer, counted from 0."""
        early = self.early_attention_linear if layer < EARLY_LAYERS else None
        return early or self.linear


# An error in the attention of the first layers spreads to all later layers: 0.8 % more bytes there
# remove half of int4's divergence. docs/quantisation.md has the figures.
EARLY_LAYERS: Final = 4
_int4 = partial(BlockLinear, block_size=INT4_BLOCK, bits=4)
_int8 = partial(BlockLinear, block_size=INT8_BLOCK, bits=8)


# In an int4 decoder this int8 layer takes a third of a token's time. It stays in int8 because it
# decides between tokens of nearly equal logits, and because token embeddings share its bytes.
def _int8_head(weight: LazyArray) -> MatMulNBits:
    return MatMulNBits(weight, INT8_BLOCK, 8)


DECODER_PRECISIONS: Mapping[str, DecoderPrecision] = {
    "fp32": DecoderPrecision(FloatLinear, partial(LMHead, dtype=ir.DataType.FLOAT)),
    "fp16": DecoderPrecision(
        Float16Linear,
        partial(LMHead, dtype=ir.DataType.FLOAT16),
        ir.DataType.FLOAT16,
        # Qwen2's activations before the down projection exceed the range of float16.
        down_linear=partial(Float16Linear, keeps_float32=True),
    ),
    # bfloat16 has the range of float32.
    "bf16": DecoderPrecision(
        partial(Float16Linear, dtype=ir.DataType.BFLOAT16),
        partial(LMHead, dtype=ir.DataType.BFLOAT16),
        ir.DataType.BFLOAT16,
    ),
    "int8": DecoderPrecision(
        PerTokenInt8Linear,
        partial(RefinedInt8Head, block_size=INT8_BLOCK, bits=8),
        o_linear=SpreadInt8Linear,
        mlp=PerTokenInt8MLP,
        transforms_stream=True,
    ),
    "int4": DecoderPrecision(_int4, _int8_head, early_attention_linear=_int8),
    # CUDA's attention has no float32 kernel.
    "int4_cuda": DecoderPrecision(
        _int4, _int8_head, ir.DataType.FLOAT16, early_attention_linear=_int8
    ),
}
