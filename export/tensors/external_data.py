"""Write arrays to a package's files; each is computed and written in pieces."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fastvlm_onnx.errors import CheckpointError
from fastvlm_onnx.export.tensors.lazy_array import LazyArray

# Tensors that begin at a page can be mapped into memory.
ALIGNMENT_BYTES: Final = 4096

Count = Callable[[int], None]
"""Called with the number of bytes that were just written."""


class StoredTensor(ir.LazyTensor):
    """An initializer whose values are computed when it is written, a few rows at a time."""

    def __init__(self, array: LazyArray, dtype: ir.DataType = ir.DataType.FLOAT) -> None:
        super().__init__(
            lambda: ir.tensor(np.concatenate(list(self.chunks())) if array.shape else array.read()),
            dtype=dtype,
            shape=ir.Shape(array.shape),
        )
        self.array, self._numpy_dtype = array, dtype.numpy()

    def cast(self, dtype: ir.DataType) -> "StoredTensor":
        """Return a tensor of the same values that are stored in another dtype."""
        return StoredTensor(self.array, dtype)

    def chunks(self) -> Iterator[NDArray[Any]]:
        """Yield the values in pieces, in row-major order.

        Raises:
            CheckpointError: a value is beyond the range of the stored dtype.
        """
        for chunk in self.array.chunks():
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
    """Write tensors into one file, each at the start of a page.

    Args:
        tensors: the tensors by name, in the order in which they are written.
        folder: the package's folder.
        file_name: the file to write in it.
        count: called after each piece.

    Returns:
        A reference to the place of each tensor, by name.
    """
    written = {}
    with (folder / file_name).open("wb") as file:
        for name, tensor in tensors.items():
            file.write(bytes(-file.tell() % ALIGNMENT_BYTES))
            offset = file.tell()
            for chunk in tensor.chunks() if isinstance(tensor, StoredTensor) else [tensor.numpy()]:
                # Viewed as bytes, since Python's buffer protocol has no bfloat16.
                file.write(chunk.reshape(-1).view(np.uint8).data)
                count(chunk.nbytes)
            written[name] = stored_at(tensor, name, folder, file_name, offset, file.tell() - offset)
    return written


def stored_at(
    tensor: ir.TensorProtocol, name: str, folder: Path, file_name: str, offset: int, length: int
) -> ir.ExternalTensor:
    """Return a reference to the place of a tensor's bytes in a file."""
    return ir.ExternalTensor(
        file_name,
        offset,
        length,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=name,
        base_dir=folder,
    )
