"""Number formats of keys and values, and the memory of OrtValues as arrays."""

import ctypes
import math
from collections.abc import Mapping
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
