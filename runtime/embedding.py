"""Token embeddings: rows of a memory-mapped matrix, gathered by id."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastvlm_onnx.errors import PackageError
from fastvlm_onnx.package import DecoderFormat


class TokenEmbedding:
    """`embed_tokens.npy`, float16 or float32 [vocab_size, hidden_size]; rows are read when used."""

    def __init__(self, path: Path, decoder: DecoderFormat) -> None:
        """Map the file.

        Raises:
            PackageError: the file is no such matrix.
        """
        try:
            self._rows = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise PackageError(
                f"{path}: cannot be mapped ({error}); export the package again."
            ) from None
        expected = (decoder.vocab_size, decoder.hidden_size)
        if self._rows.shape != expected or self._rows.dtype not in (np.float16, np.float32):
            raise PackageError(
                f"{path}: holds {self._rows.dtype} {list(self._rows.shape)}, expected float16 or "
                f"float32 {list(expected)}; export the package again."
            )

    def __call__(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Embeddings of these ids, float32 [len(token_ids), hidden_size]."""
        return self._rows[list(token_ids)].astype(np.float32)
