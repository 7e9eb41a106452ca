"""Token embeddings: rows of a memory-mapped matrix, gathered by id."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvlm_onnx.errors import PackageError
from fastvlm_onnx.names import scale_file
from fastvlm_onnx.package import DecoderFormat
from fastvlm_onnx.runtime.ort.providers import in_one_line
from fastvlm_onnx.untrusted_files import regular_file_size

# A uint8 value v stands for (v - 128) * scale, with the scale of its block.
INT8_ZERO = np.float32(128)


class TokenEmbedding:
    """`embed_tokens.npy`, float16 or float32 [vocab_size, hidden_size]; rows are read when used.

    In int8, `embed_tokens.int8.npy` is uint8 [vocab_size, >= hidden_size], and its scales beside it
    float32 [vocab_size, blocks], a block being an equal part of a row.
    """

    def __init__(self, path: Path, decoder: DecoderFormat) -> None:
        """Map the file into memory.

        Raises:
            PackageError: the file does not hold a matrix of these sizes.
        """
        self._hidden_size = decoder.hidden_size
        self._rows, self._scales = _map(path), None
        if self._rows.dtype == np.uint8:
            self._scales = _map(path.with_name(scale_file(path.name)))
        rows, scales = self._rows, self._scales
        is_whole = rows.ndim == 2 and rows.shape[0] == decoder.vocab_size
        if scales is None:
            is_whole &= rows.shape[1:] == (self._hidden_size,)
            is_whole &= rows.dtype in (np.float16, np.float32)
        else:
            is_whole &= scales.ndim == 2 and len(scales) == len(rows) and scales.shape[1] > 0
            is_whole = is_whole and rows.shape[1] % scales.shape[1] == 0
            is_whole = is_whole and rows.shape[1] >= self._hidden_size
        if not is_whole:
            raise PackageError(
                f"{path}: holds {rows.dtype} {list(rows.shape)}, expected float16 or float32 "
                f"{[decoder.vocab_size, self._hidden_size]}, or uint8 with its scales; "
                "export the package again."
            )

    def __call__(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Embeddings of these ids, float32 [len(token_ids), hidden_size]."""
        ids = list(token_ids)
        rows = self._rows[ids].astype(np.float32)
        if self._scales is None:
            return rows
        scales = self._scales[ids][..., None]
        # No size is left to be inferred: there may be no ids.
        width, num_blocks = rows.shape[1], scales.shape[1]
        blocks = rows.reshape(len(ids), num_blocks, width // num_blocks)
        return ((blocks - INT8_ZERO) * scales).reshape(len(ids), width)[:, : self._hidden_size]


def _map(path: Path) -> NDArray[Any]:
    try:
        size = regular_file_size(path, PackageError)
        # Unlike np.load, it reads neither archives nor pickles, and no header beyond 10,000 bytes.
        array: np.memmap[Any, Any] = np.lib.format.open_memmap(path, mode="r")
    except PackageError:
        raise
    # A header is a Python literal, and numpy passes on the errors of the literal's parser.
    except Exception as error:
        raise PackageError(
            f"{path}: cannot be mapped ({in_one_line(error)}); export the package again."
        ) from None
    if array.offset + array.nbytes != size:
        raise PackageError(
            f"{path}: has {size:,} bytes, and its header describes "
            f"{array.offset + array.nbytes:,}; export the package again."
        )
    return array
