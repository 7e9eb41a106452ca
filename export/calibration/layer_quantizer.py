"""Quantise the weights of a decoder in one form, layer by layer.

Each product sees the activations that the quantised products before it give, so it makes up for a
part of their error. One layer's weights in float32 are in memory at a time.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from fastvlm_onnx.export.architecture.config import DecoderConfig
from fastvlm_onnx.export.calibration.decoder_forms import Arrays, DecoderForm
from fastvlm_onnx.export.calibration.gptq import GPTQ, Rounder
from fastvlm_onnx.export.calibration.input_gram import InputGram
from fastvlm_onnx.export.calibration.layer_files import layer_file, read_layer, write_layer
from fastvlm_onnx.export.calibration.layer_runner import LayerRunner
from fastvlm_onnx.export.graphs.recorded_layer import RecordedLayer
from fastvlm_onnx.export.tensors.block_formats import PRODUCTS
from fastvlm_onnx.export.tensors.lazy_array import FloatArray
from fastvlm_onnx.export.tensors.weights import Weights

# Rows of a weight that are dequantised at a time.
PIECE_ROWS: Final = 1024
# The part of a layer's time before its output is computed, for the progress.
QUANTIZED: Final = 0.7

Report = Callable[[int, float], None]
"""Called with a layer, counted from 0, and the share of it that is done."""


class LayerQuantizer:
    """Quantises all layers of a decoder in one form."""

    def __init__(
        self,
        form: DecoderForm,
        config: DecoderConfig,
        folder: Path,
        settings: Mapping[str, GPTQ],
        threads: int | None,
    ) -> None:
        """Take what is needed; nothing is read or written.

        Args:
            form: the form of the weights.
            config: the decoder's sizes.
            folder: the folder of finished layers.
            settings: the settings of GPTQ, by product.
            threads: threads of ONNX Runtime; one for each physical core when None.
        """
        self._form, self._config, self._folder = form, config, folder
        self._settings, self._threads = settings, threads
        self._shapes = {name: config.shape_of(weights) for name, weights in PRODUCTS.items()}

    def run(self, weights: Weights, activations: Sequence[FloatArray], report: Report) -> None:
        """Quantise the layers, or those that an interrupted run left.

        Args:
            weights: the checkpoint at its root.
            activations: the inputs of the first layer by sequence, float32 [tokens, hidden_size].
                They are overwritten by those of each layer.
            report: called as a layer goes on.

        Raises:
            CheckpointError: a tensor is missing, damaged or of another shape.
            ProviderError: ONNX Runtime is not installed.
        """
        count = self._config.num_hidden_layers
        each_layer = [self._form.layer(weights / f"model.layers.{i}") for i in range(count)]
        longest = max(map(len, activations))
        runner = LayerRunner(each_layer.__getitem__, self._config, longest, self._threads)
        digest = hashlib.blake2b(digest_size=16)
        for layer in range(count):
            report(layer, 0)
            graph = runner.layer(layer)
            for name, array in graph.weights.items():
                runner.load({name: array.read()}, digest.update)
            path = layer_file(self._folder, self._form, layer)
            products = read_layer(path, digest.hexdigest())
            if products is None:
                products = self._quantize_layer(runner, graph, activations, partial(report, layer))
                write_layer(path, products, digest.hexdigest())
            elif layer < count - 1:
                for product in PRODUCTS:
                    self._load(runner, graph, product, products)
            if layer < count - 1:
                for done, part in enumerate(activations):
                    part[:] = runner.run(part)
                    report(layer, QUANTIZED + (1 - QUANTIZED) * (done + 1) / len(activations))
            runner.release(*graph.weights)

    def _quantize_layer(
        self,
        runner: LayerRunner,
        graph: RecordedLayer,
        activations: Sequence[FloatArray],
        report: Callable[[float], None],
    ) -> dict[str, Arrays]:
        """Quantise the products of a loaded layer one after the other.

        Each product's inputs are those of a layer whose products before it are quantised.
        """
        form, found = self._form, dict[str, Arrays]()
        for i, product in enumerate(PRODUCTS):
            name, gram = graph.products[product], None
            if form.is_calibrated(product):
                gram = InputGram(self._shapes[product][1])
                for part in activations:
                    gram.add(form.transform(product, runner.run(part, product)))
            runner.release(name)
            weight = form.transform(product, np.ascontiguousarray(graph.weights[name].read().T))
            rounder = None if gram is None else Rounder(gram.upper, self._settings[product])
            found[product] = form.quantize(product, weight, rounder)
            del weight, gram, rounder
            self._load(runner, graph, product, found)
            report(QUANTIZED * (i + 1) / len(PRODUCTS))
        return found

    def _load(
        self,
        runner: LayerRunner,
        graph: RecordedLayer,
        product: str,
        products: Mapping[str, Arrays],
    ) -> None:
        """Give the runner the quantised weight of one product, float32 [in, out]."""
        out_size, in_size = self._shapes[product]
        weight = np.empty((in_size, out_size), np.float32)
        for start in range(0, out_size, PIECE_ROWS):
            rows = slice(start, start + PIECE_ROWS)
            piece = self._form.dequantize(product, products[product], rows)
            weight[:, rows] = self._form.transform(product, piece).T
        runner.load({graph.products[product]: weight})
