"""How each precision's decoder is stored and computed: its linear layers, lm_head, and cache."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import onnx_ir as ir
from onnxscript import nn

from fastvlm_onnx.export.graphs.layers import Op, parameter
from fastvlm_onnx.export.graphs.linear import (
    BlockProduct,
    BlockProjection,
    FloatProjection,
    HalfProjection,
    Int8Projection,
    Projection,
)
from fastvlm_onnx.export.tensors.lazy_array import LazyArray
from fastvlm_onnx.export.tensors.quantization import INT4_BLOCK, INT8_BLOCK

Projections = Callable[..., Projection]


class LMHead(nn.Module):  # type: ignore[misc]
    """x @ weight.T for one row of each sequence: [B, 1, hidden_size] -> [B, 1, vocab_size].

    The matrix stays as the checkpoint holds it, so it can be written some rows at a time.
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
class DecoderForm:
    """How one precision's decoder is stored and computed.

    Attributes:
        projection: the linear layers.
        lm_head: makes the last layer from the matrix [vocab_size, hidden_size].
        cache_dtype: of keys and values.
        early_attention: the linear layers of attention in the first EARLY_LAYERS layers; as all
            others when None.
    """

    projection: Projections
    lm_head: Callable[[LazyArray], nn.Module]
    cache_dtype: ir.DataType = ir.DataType.FLOAT
    early_attention: Projections | None = None

    def attention_projection(self, layer: int) -> Projections:
        """What the linear layers of this layer's attention are made of."""
        early = self.early_attention if layer < EARLY_LAYERS else None
        return early or self.projection


# What goes wrong in the attention of the first layers goes wrong in all that follow: 0.8 % more
# bytes there take half of int4's divergence away. docs/quantisation.md has the figures.
EARLY_LAYERS: Final = 4
_int4 = partial(BlockProjection, block_size=INT4_BLOCK, bits=4)
_int8 = partial(BlockProjection, block_size=INT8_BLOCK, bits=8)


# In int8 the last layer takes a third of a token's time in int4, but it decides between tokens
# that are close, and shares its bytes with the token embeddings.
def _int8_head(weight: LazyArray) -> BlockProduct:
    return BlockProduct(weight, INT8_BLOCK, 8)


FORMS: Mapping[str, DecoderForm] = {
    "fp32": DecoderForm(FloatProjection, partial(LMHead, dtype=ir.DataType.FLOAT)),
    "fp16": DecoderForm(
        HalfProjection, partial(LMHead, dtype=ir.DataType.FLOAT16), ir.DataType.FLOAT16
    ),
    "bf16": DecoderForm(
        partial(HalfProjection, dtype=ir.DataType.BFLOAT16),
        partial(LMHead, dtype=ir.DataType.BFLOAT16),
        ir.DataType.BFLOAT16,
    ),
    "int8": DecoderForm(Int8Projection, _int8_head),
    "int4": DecoderForm(_int4, _int8_head, early_attention=_int8),
    # CUDA's attention has no float32 kernel.
    "int4_cuda": DecoderForm(_int4, _int8_head, ir.DataType.FLOAT16, _int8),
}
