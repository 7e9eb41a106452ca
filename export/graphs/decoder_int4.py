"""The MLP of a calibrated int4 decoder, whose most important channels have 8 bits."""

from collections.abc import Mapping

import onnx_ir as ir
from onnxscript import nn

from fastvlm_onnx.export.architecture.config import DecoderConfig
from fastvlm_onnx.export.graphs.layers import Op
from fastvlm_onnx.export.graphs.linear import MatMulNBits, split
from fastvlm_onnx.export.tensors.block_formats import BlockFormats
from fastvlm_onnx.export.tensors.lazy_array import stacked
from fastvlm_onnx.export.tensors.quantized_weight import QuantizedTensors
from fastvlm_onnx.export.tensors.weights import Weights


class SalientMLP(nn.Module):
    """down(silu(gate(x)) * up(x)) in two products of 4 bits, some of whose channels have 8.

    `salient_channels` has the order of their rows and columns.
    """

    def __init__(
        self,
        weights: Weights,
        config: DecoderConfig,
        *,
        formats: BlockFormats,
        salient: int,
        quantized: Mapping[str, QuantizedTensors],
    ) -> None:
        """Declare the layers.

        Args:
            weights: the checkpoint at the MLP.
            config: the decoder's sizes.
            formats: the formats of `gate_up_proj` and `down_proj`, in 4 bits.
            salient: the number of channels that have 8 bits.
            quantized: `gate_up_proj` and `down_proj` as a calibration quantised them.

        Raises:
            CheckpointError: a tensor is missing or has another shape.
        """
        super().__init__()
        hidden_size, intermediate_size = config.hidden_size, config.intermediate_size
        self.salient, self.others = salient, intermediate_size - salient
        gate_up = stacked(
            [
                weights.take(f"{name}_proj.weight", intermediate_size, hidden_size)
                for name in ("gate", "up")
            ]
        )
        down = weights.take("down_proj.weight", hidden_size, intermediate_size)
        self.gate_up_proj, self.down_proj = (
            MatMulNBits(
                weight, formats[name].block_size, formats[name].bits, quantized[name], shape
            )
            for name, weight, shape in (
                ("gate_up_proj", gate_up, (2 * (intermediate_size + salient), hidden_size)),
                ("down_proj", down, (hidden_size, intermediate_size + salient)),
            )
        )

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        pair = 2 * self.salient
        sizes = [pair, pair, self.others, self.others]
        high, low, gate, up = split(op, self.gate_up_proj(op, x), sizes)
        salient_gate, salient_up = split(op, op.Add(high, low), [self.salient] * 2)
        salient = silu_product(op, salient_gate, salient_up)
        channels = [salient, salient, silu_product(op, gate, up)]
        return self.down_proj(op, op.Concat(*channels, axis=-1))


def silu_product(op: Op, gate: ir.Value, up: ir.Value) -> ir.Value:
    return op.Mul(op.Mul(gate, op.Sigmoid(gate)), up)
