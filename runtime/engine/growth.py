"""Runs of a decoder that returns its cache with the new positions appended.

The decoders of `--operators standard` cannot write into a buffer. Keys and values live in the
buffers of kv_cache.py all the same: a run reads a copy of their filled part, and the positions that
it appended are copied back.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fastvlm_onnx.names import present_name
from fastvlm_onnx.runtime.engine.cache_types import host_array

MEMORY: Final = "cpu"
"""Where the buffers and the outputs of such a decoder are, on every provider."""


class Growth:
    """The buffers of one cache, given to runs and filled from them."""

    def __init__(self, buffers: Mapping[str, NDArray[Any]]) -> None:
        """Take the buffers.

        Args:
            buffers: arrays [rows, num_key_value_heads, capacity, head_dim] by the past input that
                they hold; they are changed.
        """
        self._buffers = buffers

    def bind(self, binding: Any, lengths: Sequence[int]) -> None:
        """Bind the past, and outputs for the present.

        Args:
            binding: the IO binding of the next run.
            lengths: the positions that are filled, for each row.
        """
        filled = max(lengths)
        for past, buffer in self._buffers.items():
            copy = np.ascontiguousarray(buffer[:, :, :filled])
            for row, length in enumerate(lengths):
                # The mask gives padding no weight, and no weight times NaN is NaN.
                if length < filled:
                    copy[row, :, length:] = 0
            binding.bind_cpu_input(past, copy)
            # An output of an earlier run is too short for this one.
            binding.bind_output(present_name(past), MEMORY)

    def collect(self, binding: Any, lengths: Sequence[int]) -> None:
        """Copy the new positions of a run into the buffers.

        Args:
            binding: the IO binding of the run.
            lengths: the positions that were filled before the run, for each row.
        """
        presents = binding.get_outputs()[-len(self._buffers) :]
        for buffer, present in zip(self._buffers.values(), presents, strict=True):
            new = host_array(present, buffer.dtype.type)[:, :, max(lengths) :]
            for row, length in enumerate(lengths):
                buffer[row, :, length : length + new.shape[2]] = new[row]
