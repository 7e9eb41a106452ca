"""Quantise the weights of a decoder layer by layer, on the activations of a calibration set.

Each product sees the activations that the quantised products before it give, so it makes up for a
part of their error. One layer's weights in float32 are in memory at a time.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import numpy as np

from fastvlm_onnx.export.architecture.config import VISION_PATCH_SIZE
from fastvlm_onnx.export.calibration.calibration_set import CalibrationSet
from fastvlm_onnx.export.calibration.gptq import GPTQ, Rounder
from fastvlm_onnx.export.calibration.input_gram import InputGram
from fastvlm_onnx.export.calibration.layer_files import read_layer, weights_in, write_layer
from fastvlm_onnx.export.calibration.layer_runner import LayerRunner
from fastvlm_onnx.export.calibration.sequences import Limits, Sequences, make_sequences
from fastvlm_onnx.export.checkpoint.reader import Checkpoint
from fastvlm_onnx.export.graphs.recorded_layer import RecordedLayer
from fastvlm_onnx.export.tensors.block_formats import PRODUCTS, BlockFormats
from fastvlm_onnx.export.tensors.lazy_array import FloatArray
from fastvlm_onnx.export.tensors.quantization import (
    Blocks,
    dequantize_blocks,
    quantize_blocks,
)
from fastvlm_onnx.export.tensors.quantized_weight import CalibratedWeights
from fastvlm_onnx.export.tensors.weights import Weights
from fastvlm_onnx.package import CalibrationRecord
from fastvlm_onnx.progress import Progress

METHOD: Final = "gptq"
# A down projection has the most input channels, and so the fewest tokens for each of them.
DEFAULT_SETTINGS: Final[Mapping[str, GPTQ]] = {
    "qkv_proj": GPTQ(),
    "o_proj": GPTQ(),
    "gate_up_proj": GPTQ(),
    "down_proj": GPTQ(damping=0.2),
}
DEFAULT_LIMITS: Final = Limits()
# A change of the arithmetic gives other weights, so it must not go on from files made before it.
ARITHMETIC: Final = 1
# Activations beyond this size are in a file that is mapped into memory.
MEMORY_BYTES: Final = 256_000_000
# Rows of a weight that are dequantised at a time.
PIECE_ROWS: Final = 1024
# Tokens around an image in a prompt, more than enough.
PROMPT_TOKENS: Final = 64
# The part of a layer's time before its output is computed, for the progress.
QUANTIZED: Final = 0.7


class Calibration:
    """The calibration of one decoder, before and after it has run.

    Attributes:
        folder: the hidden folder of finished layers, beside the package that they are for.
        weights: the quantised weights. They can be read once the calibration has run.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        formats: BlockFormats,
        calibration_set: CalibrationSet,
        image_size: int,
        destination: Path,
        *,
        settings: Mapping[str, GPTQ] = DEFAULT_SETTINGS,
        limits: Limits = DEFAULT_LIMITS,
        threads: int | None = None,
    ) -> None:
        """Take what is to be calibrated; nothing is read or written.

        Args:
            checkpoint: the checkpoint with the weights.
            formats: the block format of each weight.
            calibration_set: texts and images.
            image_size: side of the square input of the vision encoder in pixels.
            destination: the package that the weights are for.
            settings: the settings of GPTQ, by product.
            limits: the most that is used of the set.
            threads: threads of ONNX Runtime; one for each physical core when None.
        """
        self._checkpoint, self._formats, self._set = checkpoint, formats, calibration_set
        self._image_size, self._settings, self._limits = image_size, settings, limits
        self._threads = threads
        self.folder = destination.with_name(f".{destination.name}.calibration")
        self._config = config = checkpoint.config.decoder
        self._layers = config.num_hidden_layers
        self._shapes = {name: config.shape_of(weights) for name, weights in PRODUCTS.items()}
        self.weights: CalibratedWeights = weights_in(self.folder, config, formats)

    @property
    def size_bytes(self) -> int:
        """The largest size of the folder: quantised weights, and activations that do not fit."""
        tensors = [
            tensor
            for weight in self.weights.values()
            for tensor in (weight.values, weight.zero_points)
            if tensor is not None
        ]
        stored = sum(tensor.size_bytes // 4 for tensor in tensors)
        stored += sum(weight.scales.size_bytes for weight in self.weights.values())
        limits, hidden_size = self._limits, self._checkpoint.config.decoder.hidden_size
        image_tokens = (self._image_size // VISION_PATCH_SIZE) ** 2 + PROMPT_TOKENS
        images = min(limits.images, len(self._set.images))
        tokens = limits.texts * limits.tokens + images * image_tokens
        return stored + 4 * tokens * hidden_size

    def run(self, progress: Progress) -> CalibrationRecord:
        """Quantise all layers, or the layers that an interrupted run left.

        The folder stays after an interruption, so that the next run goes on. An error removes it.

        Args:
            progress: called with the stage, the bytes of float32 weights done and all bytes.

        Returns:
            The record for the manifest, without graphs.

        Raises:
            InputError: the set has too few tokens.
            CheckpointError: a tensor is missing, damaged or of another shape.
            ProviderError: ONNX Runtime is not installed.
        """
        sequences = make_sequences(
            self._checkpoint, self._set, self._image_size, self._limits, progress
        )
        set_digest = hashlib.sha256(sequences.inputs_embeds.data)
        set_digest.update(repr(sequences.lengths).encode())
        self._open_folder(set_digest.hexdigest())
        record = CalibrationRecord(
            method=METHOD,
            set=self._set.name,
            texts=sequences.texts,
            images=sequences.images,
            tokens=len(sequences.inputs_embeds),
            seed=self._limits.seed,
            sha256=set_digest.hexdigest(),
            graphs=[],
        )
        try:
            activations = self._activations(sequences)
            del sequences  # the activations may be on disk
            self._run_layers(activations, progress)
        except Exception:
            self.remove()
            raise
        return record

    def remove(self) -> None:
        """Remove the folder of finished layers."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _open_folder(self, set_digest: str) -> None:
        """Make the folder, and empty it unless it is of the same calibration."""
        described = {
            "arithmetic": ARITHMETIC,
            "set": set_digest,
            "settings": [asdict(self._settings[product]) for product in PRODUCTS],
            "decoder": asdict(self._checkpoint.config.decoder),
            "formats": [asdict(self._formats[product]) for product in PRODUCTS],
        }
        key = json.dumps(described, indent=1)
        key_file = self.folder / "calibration.json"
        if not key_file.is_file() or key_file.read_text("utf-8") != key:
            self.remove()
            self.folder.mkdir(parents=True)
            key_file.write_text(key, encoding="utf-8")

    def _run_layers(self, activations: Sequence[FloatArray], progress: Progress) -> None:
        weights = Weights(self._checkpoint.tensors)
        config = self._checkpoint.config.decoder
        runner = LayerRunner(weights, config, max(map(len, activations)), self._threads)
        layer_bytes = 4 * sum(out_size * in_size for out_size, in_size in self._shapes.values())
        digest = hashlib.blake2b(digest_size=16)
        for layer in range(self._layers):

            def report(share: float, layer: int = layer) -> None:
                stage = f"calibration, layer {layer + 1} of {self._layers}"
                done = int((layer + share) * layer_bytes)
                progress(stage, done, self._layers * layer_bytes)

            report(0)
            graph = runner.layer(layer)
            for name, array in graph.weights.items():
                runner.load({name: array.read()}, digest.update)
            blocks = read_layer(self.folder, layer, digest.hexdigest())
            if blocks is None:
                blocks = self._quantize_layer(runner, graph, activations, report)
                write_layer(self.folder, layer, blocks, digest.hexdigest())
            elif layer < self._layers - 1:
                for product in PRODUCTS:
                    self._load(runner, graph, product, blocks)
            if layer < self._layers - 1:
                for done, part in enumerate(activations):
                    part[:] = runner.run(part)
                    report(QUANTIZED + (1 - QUANTIZED) * (done + 1) / len(activations))
            runner.release(*graph.weights)

    def _activations(self, sequences: Sequences) -> list[FloatArray]:
        """Return the inputs of the first layer by sequence, float32 [tokens, hidden_size]."""
        given = sequences.inputs_embeds
        if given.nbytes > MEMORY_BYTES:
            path = self.folder / "activations"
            held: FloatArray = np.memmap(path, np.float32, "w+", shape=given.shape)
        else:
            held = np.empty_like(given)
        held[:] = given
        return np.split(held, np.cumsum(sequences.lengths)[:-1])

    def _quantize_layer(
        self,
        runner: LayerRunner,
        graph: RecordedLayer,
        activations: Sequence[FloatArray],
        report: Callable[[float], None],
    ) -> dict[str, Blocks]:
        """Quantise the products of a loaded layer one after the other.

        Each product's inputs are those of a layer whose products before it are quantised.
        """
        found: dict[str, Blocks] = {}
        for i, product in enumerate(PRODUCTS):
            form = self._formats[product]
            name = graph.products[product]
            gram = None
            if form.bits == 4:
                gram = InputGram(self._shapes[product][1])
                for part in activations:
                    gram.add(runner.run(part, product))
            runner.release(name)
            weight = np.ascontiguousarray(graph.weights[name].read().T)
            if gram is None:  # weights of 8 bits are rounded to the nearest
                found[product] = quantize_blocks(weight, form.block_size, form.bits)
            else:
                rounder = Rounder(gram.upper, self._settings[product])
                found[product] = rounder.quantize(weight, form.block_size)
                del rounder
            del weight, gram
            self._load(runner, graph, product, found)
            report(QUANTIZED * (i + 1) / len(PRODUCTS))
        return found

    def _load(
        self,
        runner: LayerRunner,
        graph: RecordedLayer,
        product: str,
        blocks: Mapping[str, Blocks],
    ) -> None:
        """Give the runner the quantised weight of one product."""
        weight = _dequantize(blocks[product], self._shapes[product])
        runner.load({graph.products[product]: weight})


def _dequantize(blocks: Blocks, shape: tuple[int, int]) -> FloatArray:
    """Return a weight as the layer's graph reads it, float32 [in, out]."""
    out_size, in_size = shape
    weight = np.empty((in_size, out_size), np.float32)
    for start in range(0, out_size, PIECE_ROWS):
        rows = slice(start, start + PIECE_ROWS)
        zeros = None if blocks.zero_points is None else blocks.zero_points[rows]
        piece = Blocks(blocks.packed[rows], blocks.scales[rows], zeros)
        weight[:, rows] = dequantize_blocks(piece, in_size).T
    return weight
