"""Arrays of a calibration that are in memory, or in a file where they are large."""

from pathlib import Path
from typing import Final

import numpy as np

from fastvlm_onnx.export.tensors.lazy_array import FloatArray

# Arrays beyond this size are in a file that is mapped into memory.
MEMORY_BYTES: Final = 256_000_000


def hold(path: Path, *shape: int) -> FloatArray:
    """Return a float32 array, which is the file at `path` if it is large."""
    if 4 * int(np.prod(shape)) <= MEMORY_BYTES:
        return np.empty(shape, np.float32)
    return np.memmap(path, np.float32, "w+", shape=shape)
