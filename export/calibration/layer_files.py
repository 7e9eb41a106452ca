"""The quantised weights of finished layers, kept in a folder until the package is written.

An interrupted calibration goes on after the layers whose files are there. A file belongs to a
layer's weights in float32, whose digest it holds.
"""

import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvlm_onnx.export.architecture.config import DecoderConfig
from fastvlm_onnx.export.tensors.block_formats import PRODUCTS, BlockFormats
from fastvlm_onnx.export.tensors.quantization import Blocks
from fastvlm_onnx.export.tensors.quantized_weight import CalibratedWeights, stored_blocks

DIGEST = "digest"


def layer_file(folder: Path, layer: int) -> Path:
    return folder / f"layer.{layer}.npz"


def write_layer(folder: Path, layer: int, blocks: Mapping[str, Blocks], digest: str) -> None:
    """Write the quantised weights of a layer by product, all at once."""
    arrays: dict[str, Any] = {DIGEST: np.frombuffer(bytes.fromhex(digest), np.uint8)}
    for name, found in blocks.items():
        arrays[f"{name}.packed"], arrays[f"{name}.scales"] = found.packed, found.scales
        if found.zero_points is not None:
            arrays[f"{name}.zero_points"] = found.zero_points
    path = layer_file(folder, layer)
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        np.savez(file, **arrays)
    unfinished.replace(path)


def read_layer(folder: Path, layer: int, digest: str) -> dict[str, Blocks] | None:
    """Return the weights by product; None if missing, damaged or of other weights."""
    try:
        # numpy would leave a damaged file open.
        with layer_file(folder, layer).open("rb") as file, np.load(file) as arrays:
            if arrays[DIGEST].tobytes().hex() != digest:
                return None
            return {
                name: Blocks(
                    arrays[f"{name}.packed"],
                    arrays[f"{name}.scales"],
                    arrays.get(f"{name}.zero_points"),
                )
                for name in PRODUCTS
            }
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def weights_in(folder: Path, config: DecoderConfig, formats: BlockFormats) -> CalibratedWeights:
    """Return the weights of all layers, which are read from the folder when they are used.

    Args:
        folder: the folder of the layers' files, which need not exist yet.
        config: the decoder's sizes.
        formats: the format of each product.
    """
    return {
        (layer, product): stored_blocks(
            config.shape_of(weights),
            formats[product],
            partial(_read_array, layer_file(folder, layer), product),
        )
        for layer in range(config.num_hidden_layers)
        for product, weights in PRODUCTS.items()
    }


def _read_array(path: Path, product: str, name: str) -> NDArray[Any]:
    with np.load(path) as arrays:
        found: NDArray[Any] = arrays[f"{product}.{name}"]
        return found
