"""Find the ranges of the vision encoder's activations on images, for a graph with static scales."""

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from fastvlm_onnx.errors import InputError
from fastvlm_onnx.export.architecture.tensor_names import VISION_PREFIX
from fastvlm_onnx.export.calibration.calibration_set import (
    BUILT_IN,
    IMAGE_SUFFIXES,
    LEAST_IMAGES,
    CalibrationSet,
)
from fastvlm_onnx.export.calibration.sequences import draw_some, open_graph
from fastvlm_onnx.export.checkpoint.reader import Checkpoint
from fastvlm_onnx.export.graphs.qdq import ActivationRange, equalized_range, plain_range
from fastvlm_onnx.export.graphs.vision_encoder_qdq import build_vision_encoder_extremes
from fastvlm_onnx.export.tensors.lazy_array import FloatArray
from fastvlm_onnx.export.tensors.weights import Weights
from fastvlm_onnx.names import PIXEL_VALUES
from fastvlm_onnx.package import RangesRecord
from fastvlm_onnx.progress import Progress
from fastvlm_onnx.runtime.vision.image import preprocess, read_picture
from fastvlm_onnx.samples import SAMPLE_PICTURES

METHOD: Final = "min-max"
# More images of a folder are drawn at random.
MOST_IMAGES: Final = 16
SEED: Final = 0
# Seeds of the made pictures of the built-in set, beside the sample pictures. Benchmarks judge by
# pictures of other seeds, 0 among them.
MADE_SEEDS: Final = (1, 2, 3, 4)


class RangeCalibration:
    """The calibration of one vision encoder, before and after it has run.

    Attributes:
        ranges: the range of each quantised activation; empty until the calibration has run.
    """

    def __init__(
        self, checkpoint: Checkpoint, calibration_set: CalibrationSet | None, image_size: int
    ) -> None:
        """Take what is to be calibrated; no weight is read.

        Args:
            checkpoint: the checkpoint with the weights.
            calibration_set: the set whose images are used; None for the built-in pictures.
            image_size: side of the square input of the vision encoder in pixels.

        Raises:
            InputError: a folder's set has too few images.
        """
        self._checkpoint, self._image_size = checkpoint, image_size
        is_built_in = calibration_set is None or calibration_set.name == BUILT_IN
        self._set_name = BUILT_IN if calibration_set is None else calibration_set.name
        self._made_seeds = MADE_SEEDS if is_built_in else ()
        if calibration_set is None or is_built_in:
            self._images = sorted(
                p for p in SAMPLE_PICTURES.iterdir() if p.suffix in IMAGE_SUFFIXES
            )
        else:
            self._images = draw_some(
                list(calibration_set.images), MOST_IMAGES, np.random.default_rng(SEED)
            )
            if len(self._images) < LEAST_IMAGES:
                raise InputError(
                    f"the calibration set {self._set_name} has {len(self._images)} images, "
                    f"expected at least {LEAST_IMAGES} for --target openvino; add images, or leave "
                    "the folder out for the built-in pictures."
                )
        self.ranges: dict[str, ActivationRange] = {}

    def run(self, progress: Progress) -> RangesRecord:
        """Run the images through the vision encoder in float32, one at a time.

        Args:
            progress: called with the stage, the bytes of pixel_values done and all bytes.

        Returns:
            The record for the manifest, without graphs.

        Raises:
            InputError: an image cannot be read.
            CheckpointError: a tensor is missing, damaged or of another shape.
            ProviderError: ONNX Runtime is not installed.
        """
        weights = Weights(self._checkpoint.tensors) / VISION_PREFIX.rstrip(".")
        model, products = build_vision_encoder_extremes(
            weights, self._checkpoint.config.vision, self._image_size
        )
        count, digest = len(self._images) + len(self._made_seeds), hashlib.sha256()
        image_bytes = 4 * 3 * self._image_size**2
        found: list[FloatArray] = []
        with tempfile.TemporaryDirectory() as folder:
            session = open_graph(model, Path(folder) / "vision_encoder.onnx")
            for done, pixel_values in enumerate(self._pixel_values()):
                progress("ranges of the vision encoder", done * image_bytes, count * image_bytes)
                digest.update(pixel_values.data)
                extremes = session.run(None, {PIXEL_VALUES: pixel_values})
                # Zero is always represented exactly.
                found = found or [np.zeros_like(array) for array in extremes]
                for low, high, new_low, new_high in zip(
                    *_pairs(found), *_pairs(extremes), strict=True
                ):
                    np.minimum(low, new_low, out=low)
                    np.maximum(high, new_high, out=high)
            del session  # Windows removes no file that is open
        for (name, is_foldable), low, high in zip(products.items(), *_pairs(found), strict=True):
            self.ranges[name] = (equalized_range if is_foldable else plain_range)(low, high)
        return RangesRecord(
            method=METHOD,
            set=self._set_name,
            images=count,
            image_size=self._image_size,
            seed=SEED,
            sha256=digest.hexdigest(),
            graphs=[],
        )

    def _pixel_values(self) -> Iterator[FloatArray]:
        for path in self._images:
            yield preprocess(read_picture(path), self._image_size)
        for seed in self._made_seeds:
            yield make_picture(self._image_size, seed)


def _pairs(extremes: list[FloatArray]) -> tuple[list[FloatArray], list[FloatArray]]:
    """Return the smallest and the largest values, which stand in turns."""
    return extremes[0::2], extremes[1::2]


def make_picture(image_size: int, seed: int) -> FloatArray:
    """Make noise with the spectrum of photographs: amplitudes of 1 / frequency.

    Args:
        image_size: S, the side in pixels.
        seed: the seed of the noise.

    Returns:
        pixel_values, float32 [1, 3, S, S] in 0..1.
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.fft.fftfreq(image_size)[:, None], np.fft.rfftfreq(image_size)[None, :]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = np.inf
    noise = rng.standard_normal((3, image_size, image_size))
    picture = np.fft.irfft2(np.fft.rfft2(noise) / frequency, s=(image_size, image_size))
    picture /= picture.std(axis=(1, 2), keepdims=True)
    return np.clip(0.5 + 0.25 * picture, 0, 1).astype(np.float32)[None]
