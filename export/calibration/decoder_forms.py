"""The forms of a decoder's weights that a calibration quantises: int4 in blocks, int8 by channels.

A form says on which inputs a product's weight is quantised, and how. The layers run in float32,
with the quantised weights of the products before.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from fastvlm_onnx.export.architecture.config import DecoderConfig
from fastvlm_onnx.export.calibration.gptq import GPTQ, Rounder
from fastvlm_onnx.export.graphs.decoder_int8 import (
    input_block,
    stream_block,
    transform_layer,
)
from fastvlm_onnx.export.graphs.decoder_precisions import (
    INT4_BLOCKS,
    INT8_CHANNELS,
    DecoderPrecision,
)
from fastvlm_onnx.export.graphs.hadamard import transform_columns
from fastvlm_onnx.export.tensors.block_formats import (
    PRODUCTS,
    BlockFormats,
    salient_channels,
)
from fastvlm_onnx.export.tensors.lazy_array import FloatArray
from fastvlm_onnx.export.tensors.quantization import (
    Blocks,
    dequantize_blocks,
)
from fastvlm_onnx.export.tensors.quantized_weight import (
    QuantizedTensors,
    stored_blocks,
    stored_channels,
)
from fastvlm_onnx.export.tensors.salient_channels import (
    pack_salient_columns,
    pack_salient_rows,
    unpack_salient_columns,
    unpack_salient_rows,
)
from fastvlm_onnx.export.tensors.weights import Weights

Arrays = Mapping[str, NDArray[Any]]
"""The arrays of a quantised weight, by names that the form chooses."""

# A down projection has the most input channels, and so the fewest tokens for each of them.
# Other dampings are in docs/benchmarks/quantisation-search.md. A correction of the drift follows
# the calibration's texts more than GPTQ alone does, and needs more damping.
BLOCK_SETTINGS: Final[Mapping[str, GPTQ]] = dict.fromkeys(
    PRODUCTS, GPTQ(damping=0.5, corrects_drift=True)
) | {"down_proj": GPTQ(damping=1.0, corrects_drift=True)}
CHANNEL_SETTINGS: Final[Mapping[str, GPTQ]] = dict.fromkeys(PRODUCTS, GPTQ()) | {
    "down_proj": GPTQ(damping=0.2)
}

SALIENT_PRODUCTS: Final = ("gate_up_proj", "down_proj")


class DecoderForm(Protocol):
    """One form of the weights of a decoder.

    Attributes:
        name: its name, INT4_BLOCKS or INT8_CHANNELS.
        settings: the settings of GPTQ, by product.
        salient: the number of an MLP's channels that have 8 bits. They must stand first.
    """

    name: str
    settings: Mapping[str, GPTQ]
    salient: int

    def describe(self) -> dict[str, Any]:
        """Return everything that the integers depend on beside checkpoint and set, for JSON."""

    def layer(self, weights: Weights) -> Weights:
        """Return a layer's tensors as the layers run, from those of the checkpoint."""

    def stream(self, inputs_embeds: FloatArray) -> FloatArray:
        """Return the residual stream before the first layer, [tokens, hidden_size]."""

    def transform(self, product: str, rows: FloatArray) -> FloatArray:
        """Transform the inputs of a product [tokens, in], or its weight [out, in].

        The transform is its own inverse.
        """

    def quantize(self, product: str, weight: FloatArray, rounder: Rounder) -> Arrays:
        """Quantise a transformed weight.

        Args:
            product: a key of `block_formats.PRODUCTS`.
            weight: float32 [out, in].
            rounder: of the product's transformed inputs.
        """

    def dequantize(self, product: str, arrays: Arrays, rows: slice) -> FloatArray:
        """Return some rows of a transformed weight that `quantize` has quantised, float32."""

    def tensors(self, product: str, read: Callable[[str], NDArray[Any]]) -> QuantizedTensors:
        """Return a weight as the decoder's graph reads it.

        Args:
            product: a key of `block_formats.PRODUCTS`.
            read: reads one of the arrays that `quantize` returned.
        """


def corrects_drift(form: DecoderForm) -> bool:
    """Whether a product of the form makes up for the errors of those before it."""
    return any(settings.corrects_drift for settings in form.settings.values())


class BlockForm:
    """Blocks by GPTQ: int4 with zero points, or int8."""

    name = INT4_BLOCKS
    settings: Mapping[str, GPTQ] = BLOCK_SETTINGS

    def __init__(self, config: DecoderConfig, formats: BlockFormats) -> None:
        """Take the decoder's sizes, and the format of each product."""
        self._config, self._formats = config, formats
        self.salient = salient_channels(formats, config.intermediate_size)

    def describe(self) -> dict[str, Any]:
        return {
            "formats": [asdict(self._formats[product]) for product in PRODUCTS],
            "settings": [asdict(self.settings[product]) for product in PRODUCTS],
            "salient": self.salient,
        }

    def layer(self, weights: Weights) -> Weights:
        return weights

    def stream(self, inputs_embeds: FloatArray) -> FloatArray:
        return inputs_embeds

    def transform(self, product: str, rows: FloatArray) -> FloatArray:  # noqa: ARG002
        return rows

    def quantize(self, product: str, weight: FloatArray, rounder: Rounder) -> Arrays:
        form = self._formats[product]
        if self._has_salient(product):
            found = self._quantize_salient(product, weight, rounder)
        else:
            found = rounder.quantize(weight, form)
        arrays: dict[str, NDArray[Any]] = {"packed": found.packed, "scales": found.scales}
        if found.zero_points is not None:
            arrays["zero_points"] = found.zero_points
        return arrays

    def _has_salient(self, product: str) -> bool:
        return self.salient > 0 and product in SALIENT_PRODUCTS

    def _quantize_salient(self, product: str, weight: FloatArray, rounder: Rounder) -> Blocks:
        form = self._formats[product]
        if product == "down_proj":
            found = rounder.quantize_integers(weight, form, salient=self.salient)
            return pack_salient_columns(found, self.salient, form.block_size)
        gate_up = weight.reshape(2, self._config.intermediate_size, -1)
        salient, others = (
            np.concatenate(list(part))
            for part in (gate_up[:, : self.salient], gate_up[:, self.salient :])
        )
        return pack_salient_rows(
            rounder.quantize_integers(salient, replace(form, bits=8)),
            rounder.quantize_integers(others, form),
            form.block_size,
        )

    def dequantize(self, product: str, arrays: Arrays, rows: slice) -> FloatArray:
        out_size, in_size = self._config.shape_of(PRODUCTS[product])
        zeros = arrays.get("zero_points")
        blocks = Blocks(arrays["packed"], arrays["scales"], zeros)
        if self._has_salient(product) and product == "gate_up_proj":
            channels = np.arange(*rows.indices(out_size))
            return unpack_salient_rows(
                blocks, channels, self.salient, self._config.intermediate_size, in_size
            )
        blocks = Blocks(
            blocks.packed[rows], blocks.scales[rows], None if zeros is None else zeros[rows]
        )
        if self._has_salient(product):
            return unpack_salient_columns(blocks, self.salient, in_size)
        return dequantize_blocks(blocks, in_size)

    def tensors(self, product: str, read: Callable[[str], NDArray[Any]]) -> QuantizedTensors:
        out_size, in_size = self._config.shape_of(PRODUCTS[product])
        if self._has_salient(product):
            if product == "down_proj":
                in_size += self.salient
            else:
                out_size += 2 * self.salient
        return stored_blocks((out_size, in_size), self._formats[product], read)


class ChannelForm:
    """int8 with a scale for each output channel by GPTQ, behind the int8 decoder's transforms."""

    name = INT8_CHANNELS
    settings: Mapping[str, GPTQ] = CHANNEL_SETTINGS
    salient = 0

    def __init__(self, config: DecoderConfig) -> None:
        """Take the decoder's sizes."""
        self._config = config

    def describe(self) -> dict[str, Any]:
        shapes = [self._config.shape_of(weights) for weights in PRODUCTS.values()]
        return {
            "settings": [asdict(self.settings[product]) for product in PRODUCTS],
            "stream_block": stream_block(self._config),
            "input_blocks": [
                input_block(product, in_size)
                for product, (_, in_size) in zip(PRODUCTS, shapes, strict=True)
            ],
        }

    def layer(self, weights: Weights) -> Weights:
        return transform_layer(weights, self._config)

    def stream(self, inputs_embeds: FloatArray) -> FloatArray:
        return transform_columns(inputs_embeds, stream_block(self._config))

    def transform(self, product: str, rows: FloatArray) -> FloatArray:
        return transform_columns(rows, input_block(product, rows.shape[1]))

    def quantize(
        self,
        product: str,  # noqa: ARG002
        weight: FloatArray,
        rounder: Rounder,
    ) -> Arrays:
        values, scales = rounder.quantize_channels(weight)
        return {"values": values, "scales": scales}

    def dequantize(self, product: str, arrays: Arrays, rows: slice) -> FloatArray:  # noqa: ARG002
        found: FloatArray = arrays["values"][rows] * arrays["scales"][rows, None]
        return found

    def tensors(self, product: str, read: Callable[[str], NDArray[Any]]) -> QuantizedTensors:
        return stored_channels(self._config.shape_of(PRODUCTS[product]), read)


def form_of(precision: DecoderPrecision, config: DecoderConfig) -> DecoderForm:
    """Return the form of the weights of a precision that has a `calibrated_form`."""
    if precision.formats is None:
        return ChannelForm(config)
    return BlockForm(config, precision.calibrated_formats or precision.formats)
