"""Quantise the weights of a decoder in one form, layer by layer.

Each product sees the activations that the quantised products before it give. Where the form says
so, it also makes up for a part of their errors: a second stream, of the layers in float32, says
which outputs are wanted. One layer's weights in float32 are in memory at a time.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from fastvlm_onnx.export.architecture.config import DecoderConfig
from fastvlm_onnx.export.calibration.channel_order import ChannelSalience
from fastvlm_onnx.export.calibration.decoder_forms import Arrays, DecoderForm, corrects_drift
from fastvlm_onnx.export.calibration.gptq import Rounder
from fastvlm_onnx.export.calibration.gram_factor import mirror
from fastvlm_onnx.export.calibration.held_array import hold
from fastvlm_onnx.export.calibration.input_gram import InputGram
from fastvlm_onnx.export.calibration.layer_files import (
    SavedStreams,
    layer_file,
    read_layer,
    read_streams,
    write_layer,
    write_streams,
)
from fastvlm_onnx.export.calibration.layer_runner import LAST_PRODUCT, LayerRunner
from fastvlm_onnx.export.graphs.recorded_layer import RecordedLayer
from fastvlm_onnx.export.tensors.block_formats import PRODUCTS
from fastvlm_onnx.export.tensors.lazy_array import FloatArray
from fastvlm_onnx.export.tensors.weights import Weights

# Rows of a weight that are dequantised or summed at a time.
PIECE_ROWS: Final = 1024
# Sequences that say which channels are salient, at most.
SALIENCE_SEQUENCES: Final = 16
# The part of a layer's time before its output is computed, for the progress.
QUANTIZED: Final = 0.85

Report = Callable[[int, float], None]
"""Called with a layer, counted from 0, and the share of it that is done."""


class LayerQuantizer:
    """Quantises all layers of a decoder in one form."""

    def __init__(
        self,
        form: DecoderForm,
        config: DecoderConfig,
        folder: Path,
        threads: int | None,
        *,
        different_inputs: int,
    ) -> None:
        """Take what is needed; nothing is read or written.

        Args:
            form: the form of the weights.
            config: the decoder's sizes.
            folder: the folder of finished layers.
            threads: threads of ONNX Runtime; one for each physical core when None.
            different_inputs: the different rows among the decoder's inputs.
        """
        self._form, self._config = form, config
        self._different_inputs = different_inputs
        self._folder, self._threads = folder, threads
        self._shapes = {name: config.shape_of(weights) for name, weights in PRODUCTS.items()}

    def run(
        self, weights: Weights, streams: FloatArray, lengths: Sequence[int], report: Report
    ) -> None:
        """Quantise the layers, or those that an interrupted run left.

        Args:
            weights: the checkpoint at its root.
            streams: the inputs of the first layer, float32 [1, tokens, hidden_size]; twice, [2,
                tokens, hidden_size], if the form corrects the drift. They are overwritten by those
                of each layer: with quantised weights, and in float32.
            lengths: the tokens of each sequence.
            report: called as a layer goes on.

        Raises:
            CheckpointError: a tensor is missing, damaged or of another shape.
            ProviderError: ONNX Runtime is not installed.
        """
        count = self._config.num_hidden_layers
        each_layer = [self._form.layer(weights / f"model.layers.{i}") for i in range(count)]
        runner = LayerRunner(each_layer.__getitem__, self._config, max(lengths), self._threads)
        stops = np.cumsum(lengths)[:-1]
        parts = list(zip(np.split(streams[0], stops), np.split(streams[-1], stops), strict=True))
        width = self._config.intermediate_size
        last_inputs = np.split(hold(self._folder / "down_inputs", sum(lengths), width), stops)
        first = self._resume(runner, streams)
        for layer in range(first, count):
            report(layer, 0)
            graph, digest = runner.layer(layer), hashlib.blake2b(digest_size=16)
            for name, array in graph.weights.items():
                runner.load({name: array.read()}, digest.update)
            products = self._quantize_layer(
                runner, graph, parts, last_inputs, partial(report, layer)
            )
            write_layer(layer_file(self._folder, self._form, layer), products, digest.hexdigest())
            if layer < count - 1:
                down = runner.weight(graph.products[LAST_PRODUCT])
                for done, ((part, _), x) in enumerate(zip(parts, last_inputs, strict=True)):
                    part += x @ down
                    report(layer, QUANTIZED + (1 - QUANTIZED) * (done + 1) / len(parts))
            write_streams(self._folder, self._form, SavedStreams(layer + 1, streams))
            runner.release(*graph.weights)

    def _resume(self, runner: LayerRunner, streams: FloatArray) -> int:
        """Take the streams that an interrupted run left, and return the layer they belong to.

        The layers before must be whole and of the same weights; otherwise it is the first layer.
        """
        saved = read_streams(self._folder, self._form)
        if saved is None:
            return 0
        for layer in range(saved.layer):
            digest = hashlib.blake2b(digest_size=16)
            for array in runner.layer(layer).weights.values():
                digest.update(np.ascontiguousarray(array.read()).data)
            path = layer_file(self._folder, self._form, layer)
            if read_layer(path, digest.hexdigest()) is None:
                return 0
        streams[:] = saved.streams
        return saved.layer

    def _quantize_layer(
        self,
        runner: LayerRunner,
        graph: RecordedLayer,
        parts: Sequence[tuple[FloatArray, FloatArray]],
        last_inputs: Sequence[FloatArray],
        report: Callable[[float], None],
    ) -> dict[str, Arrays]:
        """Quantise the products of a loaded layer one after the other.

        Each product's inputs are those of a layer whose products before it are quantised.

        Args:
            runner: has the layer's weights in float32. It gets the quantised weights.
            graph: the layer.
            parts: the streams of each sequence. The float32 stream becomes that after the layer.
                The other becomes the residual stream before the down projection's output is added.
            last_inputs: gets the inputs of the down projection, float32 [sequence_length,
                intermediate_size] for each sequence.
            report: called with the share of the layer that is done.
        """
        form, found = self._form, dict[str, Arrays]()
        if form.salient:
            self._sort_channels(runner, graph, parts)
        exact = runner.beside() if corrects_drift(form) else None
        for i, product in enumerate(PRODUCTS):
            name, settings = graph.products[product], form.settings[product]
            # A set of few words gives X.T X of a low rank, however long it is. Without more
            # damping, the weights serve these words at the cost of all others.
            scarcity = max(0, self._shapes[product][1] / self._different_inputs - 1)
            settings = replace(settings, damping=settings.damping + scarcity)
            original = runner.weight(name)
            gram = InputGram(self._shapes[product][1])
            drift = None
            if product == LAST_PRODUCT:
                drift = self._last_drift(original, runner, exact, parts, last_inputs, gram)
                if exact is not None:
                    exact.release(*graph.weights)
            elif exact is not None and settings.corrects_drift:
                drift = self._drift(product, original, runner, exact, parts, gram)
            else:
                for part, _ in parts:
                    gram.add(form.transform(product, runner.run(part, product)))
            runner.release(name)
            weight = form.transform(product, np.ascontiguousarray(original.T))
            del original
            rounder = Rounder(gram.upper, settings)
            if drift is not None:
                rounder.correct(weight, drift)
            del drift
            found[product] = form.quantize(product, weight, rounder)
            del weight, gram, rounder
            self._load(runner, graph, product, found)
            report(QUANTIZED * (i + 1) / len(PRODUCTS))
        return found

    def _sort_channels(
        self,
        runner: LayerRunner,
        graph: RecordedLayer,
        parts: Sequence[tuple[FloatArray, FloatArray]],
    ) -> None:
        """Put the salient channels of a loaded layer's MLP first, which changes no output."""
        gate_up_name, down_name = graph.products["gate_up_proj"], graph.products["down_proj"]
        gate_up, down = runner.weight(gate_up_name), runner.weight(down_name)
        salience = ChannelSalience(down)
        for part, _ in parts[:: -(-len(parts) // SALIENCE_SEQUENCES)]:
            salience.add(runner.run(part, "gate_up_proj") @ gate_up)
        order = salience.order(self._form.salient)
        both = gate_up.reshape(len(gate_up), 2, -1)[:, :, order]
        runner.load({gate_up_name: both.reshape(gate_up.shape), down_name: down[order]})

    def _drift(
        self,
        product: str,
        original: FloatArray,
        runner: LayerRunner,
        exact: LayerRunner,
        parts: Sequence[tuple[FloatArray, FloatArray]],
        gram: InputGram,
    ) -> FloatArray:
        """Return what the outputs of a product lack, for `Rounder.correct`, and fill the gram.

        Wanted are the outputs of the float32 layers. Behind the output projection, the residual
        stream is wanted.

        Args:
            original: the weight in float32, [in, out].
        """
        in_size = len(original)
        difference = np.zeros((in_size, in_size), np.float32)
        residual = np.zeros((self._config.hidden_size, in_size), np.float32)
        for part, exact_part in parts:
            x = runner.run(part, product)
            gram.add(x)
            difference += (exact.run(exact_part, product) - x).T @ x
            if product == "o_proj":
                residual += (exact_part - part).T @ x
        drift = original.T @ difference
        if product == "o_proj":
            drift += residual
        return drift

    def _last_drift(
        self,
        original: FloatArray,
        runner: LayerRunner,
        exact: LayerRunner | None,
        parts: Sequence[tuple[FloatArray, FloatArray]],
        last_inputs: Sequence[FloatArray],
        gram: InputGram,
    ) -> FloatArray | None:
        """Do the same for the down projection, behind which the residual stream is wanted.

        The arguments and the streams are those of `_quantize_layer`. Returns None if the form does
        not correct the drift.

        Args:
            original: the weight in float32, [in, out].
            exact: the layer in float32, if the form corrects the drift.
        """
        in_size, out_size = original.shape
        pieces = [slice(i, i + PIECE_ROWS) for i in range(0, out_size, PIECE_ROWS)]
        drift = None if exact is None else np.zeros((out_size, in_size), np.float32)
        for (part, exact_part), x in zip(parts, last_inputs, strict=True):
            x[:], part[:] = runner.run_to_last_product(part)
            gram.add(self._form.transform(LAST_PRODUCT, x))
            if exact is not None and drift is not None:
                exact_part[:] = exact.run(exact_part)
                wanted = exact_part - part
                for rows in pieces:
                    drift[rows] += wanted[:, rows].T @ x
        if exact is not None and drift is not None:
            mirror(gram.upper)
            for rows in pieces:
                drift[rows] -= original[:, rows].T @ gram.upper
        return drift

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
