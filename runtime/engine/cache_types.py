"""Number formats of keys and values, and the memory that holds them."""

import ctypes
import math
import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class CacheType:
    """A number format of keys and values.

    Attributes:
        onnx: ONNX's number of the type.
        storage: the numpy type that holds its bits; numpy has no bfloat16.
    """

    onnx: int
    storage: type[np.generic]


CACHE_TYPES: Final[Mapping[str, CacheType]] = {
    "tensor(float)": CacheType(1, np.float32),
    "tensor(float16)": CacheType(10, np.float16),
    "tensor(bfloat16)": CacheType(16, np.uint16),
}
BFLOAT16: Final = CACHE_TYPES["tensor(bfloat16)"]


def host_array(value: Any, storage: type[np.generic]) -> NDArray[Any]:
    """An OrtValue's own memory as an array; a copy where the memory is a device's."""
    if value.device_name() != "cpu":
        return value.numpy()
    # OrtValue.numpy() knows no bfloat16, and may copy.
    shape = value.shape()
    size = math.prod(shape) * np.dtype(storage).itemsize
    memory = (ctypes.c_byte * size).from_address(value.data_ptr())
    return np.frombuffer(memory, storage).reshape(shape)


def array_of_pages(shape: Sequence[int], storage: type[np.generic]) -> NDArray[Any]:
    """An array of zeros in pages of its own.

    A page takes memory from its first use on, and gives it back when the array and all views of it
    are gone. malloc gives memory back only where no later allocation stands above it, and numpy
    asks for huge pages, which take memory before they are used.

    Raises:
        OSError: there is not enough memory.
    """
    size_bytes = math.prod(shape) * np.dtype(storage).itemsize
    if os.name == "posix":
        pages = mmap.mmap(-1, size_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    else:
        pages = mmap.mmap(-1, size_bytes)
    return np.frombuffer(pages, storage).reshape(shape)
