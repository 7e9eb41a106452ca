"""Statistics of the inputs of one product, over all tokens of a calibration."""

from typing import Final

import numpy as np

from fastvlm_onnx.export.tensors.lazy_array import FloatArray

# The rows of X.T X that are computed at a time. A whole product would take as much memory again.
STRIP_ROWS: Final = 1024


class InputStatistics:
    """X.T X, and each channel's largest magnitude and sum, of inputs X [tokens, in].

    Attributes:
        tokens: the number of tokens.
        maxima: the largest magnitude of each channel, float32 [in].
        sums: float64 [in].
        gram: the upper triangle of X.T X, float32 [in, in]; None if it is not collected.
    """

    def __init__(self, in_size: int, *, has_gram: bool) -> None:
        self.tokens = 0
        self.maxima = np.zeros(in_size, np.float32)
        self.sums = np.zeros(in_size, np.float64)
        self.gram = np.zeros((in_size, in_size), np.float32) if has_gram else None

    @property
    def means(self) -> FloatArray:
        """The mean of each channel, float32 [in]."""
        return (self.sums / max(1, self.tokens)).astype(np.float32)

    def add(self, inputs: FloatArray) -> None:
        """Count inputs, float32 [tokens, in]."""
        self.tokens += len(inputs)
        np.maximum(self.maxima, np.abs(inputs).max(axis=0), out=self.maxima)
        self.sums += inputs.sum(axis=0, dtype=np.float64)
        if self.gram is None:
            return
        for start in range(0, inputs.shape[1], STRIP_ROWS):
            strip = inputs[:, start : start + STRIP_ROWS]
            self.gram[start : start + STRIP_ROWS, start:] += strip.T @ inputs[:, start:]
