"""Arrays as a package's files hold them: computed and written piece by piece, never kept."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fastvlm_onnx.errors import CheckpointError
from fastvlm_onnx.export.tensors.lazy_array import LazyArray

# Page-aligned tensors can be mapped into memory instead of read.
ALIGNMENT_BYTES: Final = 4096

Count = Callable[[int], None]
"""Called with the number of bytes just written."""


class StoredTensor(ir.LazyTensor):
    """An initializer whose values are computed when its graph is written, some rows at a time."""

    def __init__(self, array: LazyArray, dtype: ir.DataType = ir.DataType.FLOAT) -> None:
        super().__init__(
            lambda: ir.tensor(np.concatenate(list(self.chunks())) if array.shape else array.read()),
            dtype=dtype,
            shape=ir.Shape(array.shape),
        )
        self._array, self._numpy_dtype = array, dtype.numpy()

    def cast(self, dtype: ir.DataType) -> "StoredTensor":
        """The same values, stored in another type."""
        return StoredTensor(self._array, dtype)

    def chunks(self) -> Iterator[NDArray[Any]]:
        """The values in the order of memory, in pieces."""
        for chunk in self._array.chunks():
            try:
                with np.errstate(over="raise"):
                    yield np.ascontiguousarray(chunk, self._numpy_dtype)
            except FloatingPointError:
                raise CheckpointError(
                    f"tensor {self.name} reaches {np.abs(chunk).max():g}, which "
                    f"{self._numpy_dtype} cannot hold; export another precision."
                ) from None


def write_tensors(
    tensors: Mapping[str, ir.TensorProtocol], folder: Path, file_name: str, count: Count
) -> dict[str, ir.ExternalTensor]:
    """Write tensors into one file, each at a page's start, and say where each of them lies."""
    written = {}
    with (folder / file_name).open("wb") as file:
        for name, tensor in tensors.items():
            file.write(bytes(-file.tell() % ALIGNMENT_BYTES))
            offset = file.tell()
            for chunk in tensor.chunks() if isinstance(tensor, StoredTensor) else [tensor.numpy()]:
                # As bytes: Python's buffers know no bfloat16.
                file.write(chunk.reshape(-1).view(np.uint8).data)
                count(chunk.nbytes)
            written[name] = stored_at(tensor, name, folder, file_name, offset, file.tell() - offset)
    return written


def stored_at(
    tensor: ir.TensorProtocol, name: str, folder: Path, file_name: str, offset: int, length: int
) -> ir.ExternalTensor:
    """The tensor as a reference to where its bytes lie."""
    return ir.ExternalTensor(
        file_name,
        offset,
        length,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=name,
        base_dir=folder,
    )
