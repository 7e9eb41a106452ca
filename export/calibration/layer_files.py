"""The quantised weights of finished layers, kept in a folder until the package is written.

An interrupted calibration goes on after the layers whose files are there, with the activations that
they give. A file belongs to a layer's weights in float32, whose digest it holds.
"""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvlm_onnx.export.calibration.decoder_forms import Arrays, DecoderForm
from fastvlm_onnx.export.tensors.block_formats import PRODUCTS
from fastvlm_onnx.export.tensors.lazy_array import FloatArray
from fastvlm_onnx.export.tensors.quantized_weight import CalibratedWeights

DIGEST = "digest"


def layer_file(folder: Path, form: DecoderForm, layer: int) -> Path:
    return folder / f"{form.name}.layer.{layer}.npz"


def write_layer(path: Path, products: Mapping[str, Arrays], digest: str) -> None:
    """Write the quantised weights of a layer by product, all at once."""
    arrays: dict[str, Any] = {DIGEST: np.frombuffer(bytes.fromhex(digest), np.uint8)}
    for product, found in products.items():
        arrays |= {f"{product}.{name}": array for name, array in found.items()}
    _write_arrays(path, arrays)


def read_layer(path: Path, digest: str) -> dict[str, Arrays] | None:
    """Return the weights by product; None if missing, damaged or of other weights."""
    try:
        # numpy would leave a damaged file open.
        with path.open("rb") as file, np.load(file) as arrays:
            if arrays[DIGEST].tobytes().hex() != digest:
                return None
            return {
                product: {
                    key.removeprefix(f"{product}."): arrays[key]
                    for key in arrays.files
                    if key.startswith(f"{product}.")
                }
                for product in PRODUCTS
            }
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


@dataclass(frozen=True)
class SavedStreams:
    """The inputs of a layer.

    Attributes:
        layer: the layer, counted from 0; all layers before it are finished.
        streams: float32 [streams, tokens, hidden_size].
    """

    layer: int
    streams: FloatArray


def _streams_file(folder: Path, form: DecoderForm) -> Path:
    return folder / f"{form.name}.streams.npz"


def write_streams(folder: Path, form: DecoderForm, saved: SavedStreams) -> None:
    """Replace the inputs of an earlier layer by those of the next."""
    _write_arrays(_streams_file(folder, form), vars(saved))


def read_streams(folder: Path, form: DecoderForm) -> SavedStreams | None:
    """Return the inputs of the first layer that is not finished; None if missing or damaged."""
    try:
        with _streams_file(folder, form).open("rb") as file, np.load(file) as arrays:
            return SavedStreams(int(arrays["layer"]), arrays["streams"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def _write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        np.savez(file, **arrays)
    unfinished.replace(path)


def weights_in(folder: Path, form: DecoderForm, num_layers: int) -> CalibratedWeights:
    """Return the weights of all layers, which are read from the folder when they are used.

    Args:
        folder: the folder of the layers' files, which need not exist yet.
        form: the form of the weights.
        num_layers: the number of layers.
    """
    return {
        (layer, product): form.tensors(
            product, partial(_read_array, layer_file(folder, form, layer), product)
        )
        for layer in range(num_layers)
        for product in PRODUCTS
    }


def _read_array(path: Path, product: str, name: str) -> NDArray[Any]:
    with np.load(path) as arrays:
        found: NDArray[Any] = arrays[f"{product}.{name}"]
        return found
