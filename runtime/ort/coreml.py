"""CoreML's compiled models on disk, and a check of its image features."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fastvlm_onnx.errors import ProviderError
from fastvlm_onnx.runtime.ort.compiled_graphs import CompiledGraph
from fastvlm_onnx.runtime.ort.provider_selection import ProviderChoice
from fastvlm_onnx.runtime.ort.providers import COREML
from fastvlm_onnx.user_data import cache_folder

FloatArray = NDArray[np.float32]

CACHE_OPTION: Final = "ModelCacheDirectory"
# Rounding to float16 gives a relative error of 0.001 to 0.002. A wrong result exceeds 0.05.
MOST_RELATIVE_ERROR: Final = 0.05


def with_model_cache(choice: ProviderChoice, compiled: CompiledGraph) -> ProviderChoice:
    """Add a folder for the compiled model to a choice of CoreML.

    ONNX Runtime checks neither the graph's content nor its own version when it reads a compiled
    model. The folder's name has both.

    Args:
        choice: the provider of a graph.
        compiled: the place of the compiled model.

    Returns:
        The same choice if the caller named a folder, or if no folder can be made.
    """
    if CACHE_OPTION in choice.options:
        return choice
    folder = compiled.make_folder()
    if folder is None:  # the model is compiled for each session
        return choice
    return replace(choice, options={**choice.options, CACHE_OPTION: str(folder)})


def wipe_model_cache(choice: ProviderChoice) -> bool:
    """Empty the folder of compiled models, if this library made it.

    Returns:
        Whether the folder held a compiled model.
    """
    folder = Path(choice.options.get(CACHE_OPTION, ""))
    if choice.ep != COREML or cache_folder() not in folder.parents or not folder.is_dir():
        return False
    if not any(folder.iterdir()):
        return False
    shutil.rmtree(folder)
    folder.mkdir()
    return True


def check_features(
    sha256: str,
    pixel_values: FloatArray,
    encode: Callable[[FloatArray], FloatArray],
    encode_on_cpu: Callable[[FloatArray], FloatArray],
) -> float:
    """Compare CoreML's image features with the CPU's.

    The CPU encodes the image once for each graph. Its features are kept in the cache folder.

    Args:
        sha256: hash of the vision encoder's file.
        pixel_values: a sample image, float32 [1, 3, image_size, image_size].
        encode: computes image_features from pixel_values on CoreML.
        encode_on_cpu: computes image_features from pixel_values on the CPU.

    Returns:
        The relative error.

    Raises:
        ProviderError: the features differ.
    """
    file = _folder(sha256) / f"features.{pixel_values.shape[-1]}.npy"
    try:
        expected = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # no file yet, or an incomplete one
        expected = encode_on_cpu(pixel_values)
        with suppress(OSError):  # without a file, the CPU encodes the image next time too
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, expected)
    found = encode(pixel_values)
    error = float("inf")
    if found.shape == expected.shape and np.isfinite(found).all():
        error = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    if not error <= MOST_RELATIVE_ERROR:
        raise ProviderError(
            f"CoreML gives wrong image features on this machine (relative error {error:.2g}, at "
            f"most {MOST_RELATIVE_ERROR:g}, against the CPU's); use --provider cpu, "
            "or --provider-option RequireStaticInputShapes=0, which helps on macOS 15."
        )
    return error


def _folder(sha256: str) -> Path:
    return cache_folder() / "coreml-features" / sha256[:40]
