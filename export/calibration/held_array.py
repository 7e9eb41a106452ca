"""Arrays of a calibration that are in memory, or in a file where they are large."""

import os
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from fastvlm_onnx.export.tensors.lazy_array import FloatArray

# Arrays beyond this size are in a file that is mapped into memory.
MEMORY_BYTES: Final = 256_000_000


def hold(path: Path, *shape: int) -> FloatArray:
    """Return a float32 array, which is the file at `path` if it is large.

    Raises:
        OSError: the disk has no room for the file.
    """
    num_bytes = 4 * int(np.prod(shape))
    if num_bytes <= MEMORY_BYTES:
        return np.empty(shape, np.float32)
    with path.open("wb") as file:
        _reserve(file, num_bytes)
    return np.memmap(path, np.float32, "r+", shape=shape)


def _reserve(file: BinaryIO, num_bytes: int) -> None:
    """Take the room on the disk now. A mapped file that finds none later ends the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, num_bytes)
        return
    zeros = bytes(1 << 20)
    for begin in range(0, num_bytes, len(zeros)):
        file.write(zeros[: num_bytes - begin])
