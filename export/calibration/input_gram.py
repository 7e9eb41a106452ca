"""X.T X of the inputs of one product, over all tokens of a calibration."""

from typing import Final

import numpy as np

from fastvlm_onnx.export.tensors.lazy_array import FloatArray

# The rows of X.T X that are computed at a time. A whole product would take as much memory again.
STRIP_ROWS: Final = 1024


class InputGram:
    """X.T X of inputs X [tokens, in].

    Attributes:
        upper: the upper triangle of X.T X, float32 [in, in].
    """

    def __init__(self, in_size: int) -> None:
        self.upper = np.zeros((in_size, in_size), np.float32)

    def add(self, inputs: FloatArray) -> None:
        """Add inputs, float32 [tokens, in]."""
        for start in range(0, inputs.shape[1], STRIP_ROWS):
            strip = inputs[:, start : start + STRIP_ROWS]
            self.upper[start : start + STRIP_ROWS, start:] += strip.T @ inputs[:, start:]
