"""What CoreML needs besides a session: compiled models kept on disk, and proof of its numbers."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fastvlm_onnx.errors import ProviderError
from fastvlm_onnx.runtime.ort.provider_selection import ProviderChoice
from fastvlm_onnx.runtime.ort.providers import COREML, import_onnxruntime
from fastvlm_onnx.user_data import user_folder

FloatArray = NDArray[np.float32]

CACHE_OPTION: Final = "ModelCacheDirectory"
# Rounding to float16 costs a thousandth or two; a wrong result is of another size.
MOST_RELATIVE_ERROR: Final = 0.05


def with_model_cache(choice: ProviderChoice, sha256: str) -> ProviderChoice:
    """The choice, with a folder for the compiled model unless the caller named one.

    ONNX Runtime looks at neither the graph's content nor its own version when it reads from there:
    both are in the folder's name.
    """
    if choice.ep != COREML or CACHE_OPTION in choice.options:
        return choice
    folder = _folder(sha256) / import_onnxruntime().__version__
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # compiled anew each time, then
        return choice
    return replace(choice, options={**choice.options, CACHE_OPTION: str(folder)})


def wipe_model_cache(choice: ProviderChoice) -> bool:
    """Empty the folder of compiled models if it is ours; whether there was anything in it."""
    folder = Path(choice.options.get(CACHE_OPTION, ""))
    if choice.ep != COREML or user_folder() not in folder.parents or not folder.is_dir():
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
    """Encode an image, and hold its features against the CPU's.

    The CPU is asked once for each graph; its features are kept beside the compiled model.

    Args:
        sha256: of the vision encoder's file.
        pixel_values: of a sample image, float32 [1, 3, image_size, image_size].
        encode: pixel_values -> image_features, on CoreML.
        encode_on_cpu: the same on the CPU.

    Returns:
        Relative error.

    Raises:
        ProviderError: the features are others.
    """
    file = _folder(sha256) / f"features.{pixel_values.shape[-1]}.npy"
    try:
        expected = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # none yet, or cut off
        expected = encode_on_cpu(pixel_values)
        with suppress(OSError):  # made anew next time, then
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, expected)
    found = encode(pixel_values)
    error = float("inf")
    if found.shape == expected.shape and np.isfinite(found).all():
        error = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    if not error <= MOST_RELATIVE_ERROR:
        raise ProviderError(
            f"CoreML gives wrong image features on this machine (relative error {error:.2g}, at "
            f"most {MOST_RELATIVE_ERROR:g}, against the CPU's); take --provider cpu, "
            "or --provider-option RequireStaticInputShapes=0, which helps on macOS 15."
        )
    return error


def _folder(sha256: str) -> Path:
    return user_folder() / "coreml" / sha256[:40]
