"""Arrays as a package's files hold them: computed and written piece by piece, never kept."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fastvlm_onnx.export.tensors import LazyArray

# Page-aligned tensors can be mapped into memory instead of read.
ALIGNMENT_BYTES: Final = 4096

Count = Callable[[int], None]
"""Called with the number of bytes just written."""


class StoredTensor(ir.LazyTensor):  # type: ignore[misc]
    """An initializer whose values are computed when its graph is written, some rows at a time."""

    def __init__(self, array: LazyArray, dtype: ir.DataType = ir.DataType.FLOAT) -> None:
        super().__init__(
            lambda: ir.tensor(np.concatenate(list(self.chunks())) if array.shape else array.read()),
            dtype=dtype,
            shape=ir.Shape(array.shape),
        )
        self._array, self._numpy_dtype = array, dtype.numpy()

    def chunks(self) -> Iterator[NDArray[Any]]:
        """The values in the order of memory, in pieces."""
        for chunk in self._array.chunks():
            yield np.ascontiguousarray(chunk, self._numpy_dtype)


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
                file.write(chunk.data)
                count(chunk.nbytes)
            written[name] = ir.ExternalTensor(
                file_name,
                offset,
                file.tell() - offset,
                tensor.dtype,
                shape=tensor.shape,
                name=name,
                base_dir=folder,
            )
    return written


def write_npy(path: Path, array: LazyArray, dtype: type[np.floating[Any]], count: Count) -> bool:
    """Write a matrix as .npy; False, and an unfinished file, if `dtype` cannot hold it exactly."""
    with path.open("wb") as file:
        header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": array.shape}
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in array.chunks():
            with np.errstate(over="ignore"):
                stored = chunk.astype(dtype)
            if not (stored == chunk).all():
                return False
            file.write(np.ascontiguousarray(stored).data)
            count(chunk.nbytes)
    return True
