"""The decoder's precisions: the linear layers, lm_head and cache of each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import onnx_ir as ir
from onnxscript import nn

from fastvlm_onnx.export.architecture.config import DecoderConfig
from fastvlm_onnx.export.graphs.decoder_int4 import SalientMLP
from fastvlm_onnx.export.graphs.decoder_int8 import (
    ChannelInt8Head,
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
from fastvlm_onnx.export.tensors.block_formats import (
    CALIBRATED_FORMATS,
    INT4_FORMATS,
    BlockFormats,
    salient_channels,
)
from fastvlm_onnx.export.tensors.lazy_array import LazyArray
from fastvlm_onnx.export.tensors.quantization import INT8_BLOCK
from fastvlm_onnx.export.tensors.quantized_weight import CalibratedWeights
from fastvlm_onnx.export.tensors.weights import Weights

# The forms in which a calibration can quantise the weights of a decoder: int4 in blocks, and int8
# with a scale for each output channel.
INT4_BLOCKS: Final = "int4"
INT8_CHANNELS: Final = "int8"

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
        linear: makes every linear layer that no other attribute names; None where `formats` names
            every product.
        lm_head: makes the last layer from a matrix [vocab_size, hidden_size].
        cache_dtype: the dtype of keys and values.
        o_linear: makes the output projection of every attention; `linear` makes it when None.
        down_linear: makes the down projection of every MLP; `linear` makes it when None.
        mlp: makes every MLP from its tensors, and from its quantised tensors if there are any;
            `linear` and `down_linear` make its layers when None.
        transforms_stream: the residual stream goes through a Hadamard transform.
        has_int8_channels: every weight is int8 with a scale for each output channel.
        formats: the block formats of all products, of which every linear layer is made; None where
            weights are not in blocks.
        calibrated_formats: the same for weights that a calibration quantised; `formats` when None.
        avoids_tiling: attention does without ONNX Runtime's tiled kernel; see AttentionInputs.
        shared_weights: the precision whose weights this decoder shares, but for the tensors of
            lm_head that it has alone; None where no other decoder has its weights.
    """

    linear: LinearFactory | None
    lm_head: Callable[[LazyArray], nn.Module]
    cache_dtype: ir.DataType = ir.DataType.FLOAT
    o_linear: LinearFactory | None = None
    down_linear: LinearFactory | None = None
    mlp: Callable[..., nn.Module] | None = None
    transforms_stream: bool = False
    has_int8_channels: bool = False
    formats: BlockFormats | None = None
    calibrated_formats: BlockFormats | None = None
    avoids_tiling: bool = False
    shared_weights: str | None = None

    @property
    def calibrated_form(self) -> str | None:
        """The form in which a calibration quantises the weights.

        INT4_BLOCKS or INT8_CHANNELS; None for a precision that no calibration changes.
        """
        if self.formats is not None:
            return INT4_BLOCKS
        return INT8_CHANNELS if self.has_int8_channels else None

    def linear_of(
        self,
        layer: int,
        product: str,
        calibrated: CalibratedWeights | None = None,
    ) -> LinearFactory:
        """Return the factory for one product of one layer.

        Args:
            layer: the layer, counted from 0.
            product: a key of `block_formats.PRODUCTS`.
            calibrated: weights that a calibration quantised in this precision's form; weights are
                rounded as they are written when None.
        """
        formats = self._formats_of(calibrated)
        if formats is not None:
            form = formats[product]
            return partial(
                BlockLinear,
                block_size=form.block_size,
                bits=form.bits,
                quantized=None if calibrated is None else calibrated[layer, product],
            )
        special = {"o_proj": self.o_linear, "down_proj": self.down_linear}.get(product)
        chosen = special or self.linear
        assert chosen is not None
        return (
            chosen if calibrated is None else partial(chosen, quantized=calibrated[layer, product])
        )

    def mlp_of(
        self, layer: int, config: DecoderConfig, calibrated: CalibratedWeights | None = None
    ) -> Callable[[Weights, DecoderConfig], nn.Module] | None:
        """Return the MLP of one layer, or None if `linear_of` makes its layers.

        Args:
            layer: the layer, counted from 0.
            config: the decoder's sizes.
            calibrated: as for `linear_of`. An int4 MLP then has salient channels.
        """
        if calibrated is None:
            return self.mlp
        quantized = {name: calibrated[layer, name] for name in ("gate_up_proj", "down_proj")}
        if self.mlp is not None:
            return partial(self.mlp, quantized=quantized)
        formats = self._formats_of(calibrated)
        if formats is None:
            return None
        salient = salient_channels(formats, config.intermediate_size)
        if not salient:
            return None
        return partial(SalientMLP, formats=formats, salient=salient, quantized=quantized)

    def _formats_of(self, calibrated: CalibratedWeights | None) -> BlockFormats | None:
        return self.formats if calibrated is None else self.calibrated_formats or self.formats


# In an int4 decoder this int8 layer takes a third of a token's time. It stays in int8 because it
# decides between tokens of nearly equal logits, and because token embeddings share its bytes.
def _int8_head(weight: LazyArray) -> MatMulNBits:
    return MatMulNBits(weight, INT8_BLOCK, 8)


_INT8: Final = DecoderPrecision(
    PerTokenInt8Linear,
    partial(RefinedInt8Head, block_size=INT8_BLOCK, bits=8),
    o_linear=SpreadInt8Linear,
    mlp=PerTokenInt8MLP,
    transforms_stream=True,
    has_int8_channels=True,
    avoids_tiling=True,
)
_INT4: Final = DecoderPrecision(
    None, _int8_head, formats=INT4_FORMATS, calibrated_formats=CALIBRATED_FORMATS
)
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
    "int8": _INT8,
    "web": replace(
        _INT8,
        lm_head=partial(ChannelInt8Head, block_size=INT8_BLOCK, bits=8),
        shared_weights="int8",
    ),
    "int4": _INT4,
    # CUDA's attention has no float32 kernel.
    "int4_cuda": replace(_INT4, cache_dtype=ir.DataType.FLOAT16),
}
