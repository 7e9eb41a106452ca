"""Quantise the weights of a checkpoint's decoders on the activations of a calibration set.

A decoder in another form has other activations, so each form runs its own layers.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import numpy as np

from fastvlm_onnx.export.architecture.config import VISION_PATCH_SIZE
from fastvlm_onnx.export.calibration.calibration_set import CalibrationSet
from fastvlm_onnx.export.calibration.decoder_forms import corrects_drift, form_of
from fastvlm_onnx.export.calibration.held_array import hold
from fastvlm_onnx.export.calibration.layer_files import weights_in
from fastvlm_onnx.export.calibration.layer_quantizer import LayerQuantizer
from fastvlm_onnx.export.calibration.sequences import Limits, make_sequences
from fastvlm_onnx.export.checkpoint.reader import Checkpoint
from fastvlm_onnx.export.graphs.decoder_precisions import DecoderPrecision
from fastvlm_onnx.export.tensors.block_formats import PRODUCTS
from fastvlm_onnx.export.tensors.lazy_array import FloatArray
from fastvlm_onnx.export.tensors.quantized_weight import CalibratedWeights
from fastvlm_onnx.export.tensors.weights import Weights
from fastvlm_onnx.package import CalibrationRecord
from fastvlm_onnx.progress import Progress

METHOD: Final = "gptq"
DEFAULT_LIMITS: Final = Limits()
# A change of the arithmetic gives other weights, so it must not go on from files made before it.
ARITHMETIC: Final = 3
# Tokens around an image in a prompt, more than enough.
PROMPT_TOKENS: Final = 64


class Calibration:
    """The calibration of a checkpoint's decoders, before and after it has run.

    Attributes:
        folder: the hidden folder of finished layers, beside the package that they are for.
        weights: the quantised weights by their form, a key of `precisions`. They can be read once
            the calibration has run.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        precisions: Mapping[str, DecoderPrecision],
        calibration_set: CalibrationSet,
        image_size: int,
        destination: Path,
        *,
        limits: Limits = DEFAULT_LIMITS,
        threads: int | None = None,
    ) -> None:
        """Take what is to be calibrated; nothing is read or written.

        Args:
            checkpoint: the checkpoint with the weights.
            precisions: a precision of each form to calibrate, by `calibrated_form`.
            calibration_set: texts and images.
            image_size: side of the square input of the vision encoder in pixels.
            destination: the package that the weights are for.
            limits: the most that is used of the set.
            threads: threads of ONNX Runtime; one for each physical core when None.
        """
        self._checkpoint, self._set = checkpoint, calibration_set
        self._image_size, self._limits = image_size, limits
        self._threads = threads
        self.folder = destination.with_name(f".{destination.name}.calibration")
        self._config = config = checkpoint.config.decoder
        self._forms = [form_of(precision, config) for precision in precisions.values()]
        self.weights: dict[str, CalibratedWeights] = {
            form.name: weights_in(self.folder, form, config.num_hidden_layers)
            for form in self._forms
        }

    @property
    def size_bytes(self) -> int:
        """The largest size of the folder: quantised weights, and activations that do not fit."""
        weights = [found for form in self.weights.values() for found in form.values()]
        tensors = [
            tensor
            for weight in weights
            for tensor in (weight.values, weight.zero_points)
            if tensor is not None
        ]
        stored = sum(tensor.size_bytes // 4 for tensor in tensors)
        stored += sum(weight.scales.size_bytes for weight in weights)
        limits = self._limits
        image_tokens = (self._image_size // VISION_PATCH_SIZE) ** 2 + PROMPT_TOKENS
        images = min(limits.images, len(self._set.images))
        tokens = limits.texts * limits.tokens + images * image_tokens
        # The sequences, their two streams, and a file of the streams, twice while it is replaced;
        # and the inputs of a down projection.
        widths = 7 * self._config.hidden_size + self._config.intermediate_size
        return stored + 4 * tokens * widths

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
            lengths = sequences.lengths
            inputs_embeds = self._hold("inputs_embeds", sequences.inputs_embeds)
            del sequences  # what is held may be on disk
            self._run_forms(inputs_embeds, lengths, progress)
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
            "decoder": asdict(self._config),
            "forms": {form.name: form.describe() for form in self._forms},
        }
        key = json.dumps(described, indent=1)
        key_file = self.folder / "calibration.json"
        if not key_file.is_file() or key_file.read_text("utf-8") != key:
            self.remove()
            self.folder.mkdir(parents=True)
            key_file.write_text(key, encoding="utf-8")

    def _hold(self, name: str, array: FloatArray) -> FloatArray:
        """Return a copy of an array, in a file of the folder if the array is large."""
        held = hold(self.folder / name, *array.shape)
        held[:] = array
        return held

    def _run_forms(
        self, inputs_embeds: FloatArray, lengths: Sequence[int], progress: Progress
    ) -> None:
        config, weights = self._config, Weights(self._checkpoint.tensors)
        layers = config.num_hidden_layers
        shapes = [config.shape_of(names) for names in PRODUCTS.values()]
        layer_bytes = 4 * sum(out_size * in_size for out_size, in_size in shapes)
        different_inputs = len({hashlib.sha256(row).digest() for row in inputs_embeds})
        for number, form in enumerate(self._forms):

            def report(
                layer: int, share: float, before: int = number * layers, name: str = form.name
            ) -> None:
                stage = f"calibration of {name}, layer {layer + 1} of {layers}"
                done = int((before + layer + share) * layer_bytes)
                progress(stage, done, len(self._forms) * layers * layer_bytes)

            stream = form.stream(inputs_embeds)
            streams = self._hold("streams", np.stack([stream] * (2 if corrects_drift(form) else 1)))
            del stream
            quantizer = LayerQuantizer(
                form, config, self.folder, self._threads, different_inputs=different_inputs
            )
            quantizer.run(weights, streams, lengths, report)
