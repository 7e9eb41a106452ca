"""The order of an MLP's channels: those whose rounding changes the output most come first."""

import numpy as np
from numpy.typing import NDArray

from fastvlm_onnx.export.tensors.lazy_array import FloatArray


class ChannelSalience:
    """The error that rounding the weights of a channel gives, as a share of all channels' error.

    With rounding errors of one size in every weight, the error of the output is the sum of

    - the channel's mean square, for its column of the down projection;
    - the mean square of its derivatives by gate and up, times the square of its column's norm, for
      its rows of these projections. All rows read the same input.
    """

    def __init__(self, down: FloatArray) -> None:
        """Start with no tokens.

        Args:
            down: the down projection, float32 [intermediate_size, hidden_size].
        """
        self._reach = np.square(down).sum(axis=1)
        self._squares, self._slopes = (np.zeros(len(down)) for _ in range(2))

    def add(self, gate_up: FloatArray) -> None:
        """Add tokens.

        Args:
            gate_up: gate and up of each token, float32 [tokens, 2 * intermediate_size].
        """
        gate, up = np.split(gate_up, 2, axis=1)
        sigmoid = 1 / (1 + np.exp(-np.clip(gate, -60, 60)))
        silu = gate * sigmoid
        by_gate = sigmoid * (1 + gate * (1 - sigmoid)) * up
        self._squares += np.square(silu * up).sum(axis=0)
        self._slopes += (np.square(by_gate) + np.square(silu)).sum(axis=0)

    def order(self, count: int) -> NDArray[np.int64]:
        """Return all channels, the `count` most salient first; each part in its own order."""
        shares = [x / max(x.sum(), 1e-30) for x in (self._squares, self._slopes * self._reach)]
        ranked = np.argsort(-np.sum(shares, axis=0), kind="stable")
        return np.concatenate([np.sort(ranked[:count]), np.sort(ranked[count:])])
