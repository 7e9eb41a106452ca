"""Run one decoder layer at a time in float32, in ONNX Runtime on the CPU.

One session runs all layers, because the weights are inputs of its graph. No weight is written to
disk, and one layer's weights are in memory.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from fastvlm_onnx.export.architecture.config import DecoderConfig
from fastvlm_onnx.export.graphs.recorded_layer import (
    HIDDEN_STATES,
    NEXT_HIDDEN_STATES,
    RecordedLayer,
    build_recorded_layer,
)
from fastvlm_onnx.export.tensors.block_formats import PRODUCTS
from fastvlm_onnx.export.tensors.lazy_array import FloatArray
from fastvlm_onnx.export.tensors.weights import Weights
from fastvlm_onnx.names import ATTENTION_MASK, past_names
from fastvlm_onnx.runtime.ort.provider_selection import ProviderChoice
from fastvlm_onnx.runtime.ort.providers import CPU
from fastvlm_onnx.runtime.ort.session import GraphSession


class LayerRunner:
    """The layers of one decoder, of which one is loaded."""

    def __init__(
        self, weights: Weights, config: DecoderConfig, context_length: int, threads: int | None
    ) -> None:
        """Open the session; no weight is read.

        Args:
            weights: the checkpoint at its root.
            config: the decoder's sizes.
            context_length: the length of the longest sequence.
            threads: threads of ONNX Runtime; one for each physical core when None.

        Raises:
            ProviderError: ONNX Runtime is not installed.
        """
        self._weights = weights
        self._config = replace(config, max_position_embeddings=context_length)
        self._loaded: dict[str, FloatArray] = {}
        kv_shape = (1, config.num_key_value_heads, 0, config.head_dim)
        self._cache = dict.fromkeys(past_names(0), np.empty(kv_shape, np.float32))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "decoder_layer.onnx"
            ir.save(self.layer(0).model, path)
            self._session = GraphSession(path, ProviderChoice(CPU), threads)

    def layer(self, layer: int) -> RecordedLayer:
        """Return the graph and the unread weights of one layer, counted from 0."""
        return build_recorded_layer(self._weights, self._config, layer)

    def load(self, weights: Mapping[str, FloatArray]) -> None:
        """Take the weights of a layer, by the names of `RecordedLayer.weights`."""
        self._loaded = {name: np.ascontiguousarray(array) for name, array in weights.items()}

    def release(self) -> None:
        """Free the weights."""
        self._loaded = {}

    def run(self, hidden_states: FloatArray) -> FloatArray:
        """Run the loaded layer on a sequence.

        Args:
            hidden_states: float32 [sequence_length, hidden_size].

        Returns:
            The layer's output, of the same shape.
        """
        return self._run(hidden_states, [NEXT_HIDDEN_STATES])[0]

    def record(self, hidden_states: FloatArray) -> dict[str, FloatArray]:
        """Run the loaded layer on a sequence, and return the input of each product.

        Args:
            hidden_states: float32 [sequence_length, hidden_size].

        Returns:
            float32 [sequence_length, in], by product.
        """
        return dict(zip(PRODUCTS, self._run(hidden_states, list(PRODUCTS)), strict=True))

    def _run(self, hidden_states: FloatArray, outputs: list[str]) -> list[FloatArray]:
        feeds = {
            HIDDEN_STATES: hidden_states[None],
            ATTENTION_MASK: np.ones((1, len(hidden_states)), np.int64),
            **self._cache,
            **self._loaded,
        }
        return [array[0] for array in self._session.run(outputs, feeds)]
