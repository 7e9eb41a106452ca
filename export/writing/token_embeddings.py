"""Write token embeddings as files, whose rows the runtime maps into memory and gathers by id.

The values start at a fixed offset. An lm_head that is the same matrix in the same number format is
not stored again: its graph refers to the file of the token embeddings.
"""

import math
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fastvlm_onnx.export.tensors.external_data import ALIGNMENT_BYTES, Count
from fastvlm_onnx.export.tensors.lazy_array import LazyArray
from fastvlm_onnx.export.tensors.quantization import INT8_BLOCK
from fastvlm_onnx.export.tensors.quantized_weight import quantize_blocks_lazily
from fastvlm_onnx.names import EMBED_TOKENS_FILE, EMBED_TOKENS_INT8_FILE, scale_file


class Embeddings(Protocol):
    """The embedding matrix in one number format.

    Attributes:
        file_name: the file of the values.
    """

    file_name: str

    @property
    def dtype(self) -> ir.DataType:
        """The dtype of the values: FLOAT or FLOAT16, or UINT8 for values in blocks."""
        ...

    @property
    def size_bytes(self) -> int:
        """The size of the files, without headers."""
        ...

    def write(self, folder: Path, count: Count) -> None:
        """Write the files, and report the bytes of each part to `count`."""
        ...

    def head_files(self, dtype: ir.DataType) -> dict[str, str]:
        """Return the files that already store an lm_head of this dtype, by parameter name."""
        ...


class FloatEmbeddings:
    """The matrix [vocab_size, hidden_size] in float16 where that is exact, else in float32."""

    def __init__(self, rows: LazyArray) -> None:
        self.file_name = EMBED_TOKENS_FILE
        self._rows = rows

    @cached_property
    def dtype(self) -> ir.DataType:
        # A checkpoint in bfloat16 may hold smaller numbers than float16 can. The first rows mostly
        # show it, so the check ends early.
        with np.errstate(over="ignore"):
            is_exact = all(
                (chunk.astype(np.float16) == chunk).all() for chunk in self._rows.chunks()
            )
        return ir.DataType.FLOAT16 if is_exact else ir.DataType.FLOAT

    @property
    def size_bytes(self) -> int:
        return math.prod(self._rows.shape) * self.dtype.numpy().itemsize

    def write(self, folder: Path, count: Count) -> None:
        write_npy(folder / self.file_name, self._rows, self.dtype.numpy(), count)

    def head_files(self, dtype: ir.DataType) -> dict[str, str]:
        return {"weight": self.file_name} if dtype == self.dtype else {}


class Int8Embeddings:
    """The matrix as uint8 around 128 in blocks, with float32 scales.

    The values are [vocab_size, blocks * block_size], the scales [vocab_size, blocks].
    """

    def __init__(self, rows: LazyArray) -> None:
        self.file_name = EMBED_TOKENS_INT8_FILE
        self.dtype = ir.DataType.UINT8
        self._blocks = quantize_blocks_lazily(rows, INT8_BLOCK, 8)

    @property
    def size_bytes(self) -> int:
        return self._blocks.values.size_bytes // 4 + self._blocks.scales.size_bytes

    def write(self, folder: Path, count: Count) -> None:
        rows, blocks, block_size = self._blocks.values.shape
        write_npy(
            folder / self.file_name,
            self._blocks.values,
            np.dtype(np.uint8),
            count,
            shape=(rows, blocks * block_size),
        )
        scales = folder / scale_file(self.file_name)
        write_npy(scales, self._blocks.scales, np.dtype(np.float32), count)

    def head_files(self, dtype: ir.DataType) -> dict[str, str]:
        if dtype != ir.DataType.UINT8:
            return {}
        return {"weight": self.file_name, "scales": scale_file(self.file_name)}


def write_npy(
    path: Path,
    array: LazyArray,
    dtype: np.dtype[Any],
    count: Count,
    shape: tuple[int, ...] | None = None,
) -> None:
    """Write a matrix as .npy, with its values at the offset ALIGNMENT_BYTES.

    Args:
        path: the file.
        array: the matrix.
        dtype: the number format of the file.
        count: called with the bytes of each written part.
        shape: the shape in the file's header; the matrix's own when None.
    """
    with path.open("wb") as file:
        file.write(_npy_header(shape or array.shape, dtype))
        for chunk in array.chunks():
            stored: NDArray[Any] = np.ascontiguousarray(chunk, dtype)
            file.write(stored.data)
            count(stored.nbytes)


def _npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """Return numpy's header, version 1.0, padded to a page instead of to 64 bytes."""
    fields = repr({"descr": dtype.str, "fortran_order": False, "shape": shape}).encode("latin1")
    length = ALIGNMENT_BYTES - 10
    magic = b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little")
    return magic + fields.ljust(length - 1) + b"\n"
