"""Run one decoder layer at a time in float32, in ONNX Runtime on the CPU.

The same sessions run all layers, because the weights are inputs of the graphs. No weight is written
to disk, and one layer's weights are in memory.
"""

import copy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fastvlm_onnx.export.architecture.config import DecoderConfig
from fastvlm_onnx.export.graphs.recorded_layer import (
    HIDDEN_STATES,
    NEXT_HIDDEN_STATES,
    RESIDUAL,
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

LAST_PRODUCT: Final = "down_proj"
# The input of the last product, and the residual stream that its output is added to.
LAST_STEP: Final = (LAST_PRODUCT, RESIDUAL)


class LayerRunner:
    """The layers of one decoder, of which one is loaded."""

    def __init__(
        self,
        layers: Callable[[int], Weights],
        config: DecoderConfig,
        context_length: int,
        threads: int | None,
    ) -> None:
        """Open the sessions; no weight is read.

        Args:
            layers: returns the tensors of a layer, counted from 0.
            config: the decoder's sizes.
            context_length: the length of the longest sequence.
            threads: threads of ONNX Runtime; one for each physical core when None.

        Raises:
            ProviderError: ONNX Runtime is not installed.
        """
        self._layers = layers
        self._config = replace(config, max_position_embeddings=context_length)
        self._loaded: dict[str, FloatArray] = {}
        kv_shape = (1, config.num_key_value_heads, 0, config.head_dim)
        self._cache = dict.fromkeys(past_names(0), np.empty(kv_shape, np.float32))
        self._sessions: dict[tuple[str, ...], GraphSession] = {}
        with tempfile.TemporaryDirectory() as folder:
            single = ((name,) for name in (NEXT_HIDDEN_STATES, *PRODUCTS))
            for outputs in (*single, LAST_STEP):
                path = Path(folder) / f"{'.'.join(outputs)}.onnx"
                model = build_recorded_layer(layers(0), self._config, outputs).model
                ir.save(model, path)
                self._sessions[outputs] = GraphSession(path, ProviderChoice(CPU), threads)

    def layer(self, layer: int) -> RecordedLayer:
        """Return the graph and the unread weights of one layer, counted from 0."""
        return build_recorded_layer(self._layers(layer), self._config)

    def load(
        self,
        weights: Mapping[str, FloatArray],
        digest: Callable[[memoryview], object] = lambda _: None,
    ) -> None:
        """Take weights of a layer, by the names of `RecordedLayer.weights`.

        Weights that were taken before are kept, unless they are given again.

        Args:
            weights: float32 arrays.
            digest: called with the bytes of each array.
        """
        for name, array in weights.items():
            self._loaded[name] = np.ascontiguousarray(array)
            digest(self._loaded[name].data)

    def release(self, *names: str) -> None:
        """Free some weights."""
        for name in names:
            del self._loaded[name]

    def beside(self) -> Self:
        """Return a runner with the same sessions and weights.

        Weights that are loaded or released later, in either of the two, are not those of the other.
        """
        other = copy.copy(self)
        other._loaded = dict(self._loaded)
        return other

    def weight(self, name: str) -> FloatArray:
        """Return a loaded weight."""
        return self._loaded[name]

    def run(self, hidden_states: FloatArray, output: str = NEXT_HIDDEN_STATES) -> FloatArray:
        """Run the loaded layer on a sequence, up to its end or up to one product's input.

        Args:
            hidden_states: float32 [sequence_length, hidden_size].
            output: NEXT_HIDDEN_STATES, or one of `block_formats.PRODUCTS`.

        Returns:
            float32 [sequence_length, width].
        """
        (found,) = self._run(hidden_states, (output,))
        return found

    def run_to_last_product(self, hidden_states: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Run the loaded layer on a sequence, float32 [sequence_length, hidden_size].

        Returns:
            The input of the down projection, float32 [sequence_length, intermediate_size], and the
            residual stream that its output is added to, float32 [sequence_length, hidden_size].
        """
        inputs, residual = self._run(hidden_states, LAST_STEP)
        return inputs, residual

    def _run(self, hidden_states: FloatArray, outputs: tuple[str, ...]) -> list[FloatArray]:
        feeds: dict[str, NDArray[Any]] = {
            HIDDEN_STATES: hidden_states[None],
            ATTENTION_MASK: np.ones((1, len(hidden_states)), np.int64),
            **self._cache,
            **self._loaded,
        }
        return [found[0] for found in self._sessions[outputs].run(outputs, feeds)]
