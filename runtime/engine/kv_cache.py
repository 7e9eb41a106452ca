"""Keys and values of every layer, in buffers that the decoder graph writes in place."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from fastvlm_onnx.errors import ProviderError
from fastvlm_onnx.names import LOGITS, is_past, present_name
from fastvlm_onnx.package import DecoderFormat
from fastvlm_onnx.runtime.ort.providers import import_onnxruntime, in_one_line

if TYPE_CHECKING:
    from fastvlm_onnx.runtime.ort.session import GraphSession

FloatArray = NDArray[np.float32]

# What a graph's inputs may hold keys and values in. numpy has no bfloat16: ONNX's number of it.
BFLOAT16: Final = 16
CACHE_DTYPES: Final = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(bfloat16)": BFLOAT16,
}


class KVCache:
    """One buffer per layer for keys and one for values, each bound once as past and as present.

    GroupQueryAttention finds both on the same memory and appends in place, so a step moves only its
    own keys and values. Several graphs may fill one cache in turn.

    Attributes:
        bindings: an IO binding for each session, complete but for inputs_embeds and attention_mask.
        token: float32 [1, 1, hidden_size], the decoder's input where it is one token.
        logits: float32 [1, 1, vocab_size], written by each run of a graph that has logits.
        length: positions filled.
        capacity: positions there is room for.
    """

    def __init__(
        self,
        sessions: Sequence["GraphSession"],
        decoder: DecoderFormat,
        capacity: int,
        buffers: Mapping[str, Any] | None = None,
    ) -> None:
        """Allocate it where the sessions' tensors live.

        Args:
            buffers: OrtValues [1, num_key_value_heads, capacity, head_dim] by the name of the past
                that they hold; new ones when None.

        Raises:
            ProviderError: there is not enough memory.
        """
        values = import_onnxruntime().OrtValue
        memory = sessions[0].choice.memory
        self.length, self.capacity = 0, capacity
        self.logits = np.empty((1, 1, decoder.vocab_size), np.float32)
        shape = (1, decoder.num_key_value_heads, capacity, decoder.head_dim)
        with _enough_memory(capacity):
            self.token = values.ortvalue_from_shape_and_type(
                (1, 1, decoder.hidden_size), np.float32, memory
            )
            # What is not yet filled is never read, and takes no memory before it is.
            buffers = buffers or {
                past: values.ortvalue_from_shape_and_type(shape, dtype, memory)
                for past, dtype in _past_dtypes(sessions[0]).items()
            }
            self.bindings = [bind(session, buffers, self.logits) for session in sessions]


class BatchCache:
    """Keys and values of several sequences, a row for each; those still going on come first.

    The buffers are this process's own arrays, so that rows can be moved.

    Attributes:
        lengths: int64 [rows], positions filled; rows beyond it have left.
    """

    def __init__(
        self, sessions: Sequence["GraphSession"], decoder: DecoderFormat, rows: int, capacity: int
    ) -> None:
        """Allocate it.

        Raises:
            ProviderError: there is not enough memory, or it would hold numbers that numpy has not.
        """
        self._sessions, self._decoder, self._capacity = sessions, decoder, capacity
        self.lengths = np.zeros(rows, np.int64)
        shape = (rows, decoder.num_key_value_heads, capacity, decoder.head_dim)
        dtypes = _past_dtypes(sessions[0])
        if BFLOAT16 in dtypes.values():
            raise ProviderError(
                "keys and values in bfloat16 cannot be kept for a batch; take the fp16 variant, or "
                "ask one question at a time."
            )
        with _enough_memory(rows * capacity):
            self._arrays = {past: np.empty(shape, dtype) for past, dtype in dtypes.items()}
        self._binding: Any = None

    def row(self, number: int) -> KVCache:
        """One sequence's cache, to be filled by itself; `lengths` is for the caller to set."""
        buffers = self._values(slice(number, number + 1))
        return KVCache(self._sessions, self._decoder, self._capacity, buffers)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone, in ascending order; they move to the front."""
        for to, row in enumerate(rows):
            if to != row:
                filled = self.lengths[row]
                for array in self._arrays.values():
                    array[to, :, :filled] = array[row, :, :filled]
        self.lengths = self.lengths[list(rows)]
        self._binding = None

    def binding(self) -> tuple[Any, FloatArray]:
        """An IO binding over the rows that are left, and their logits [rows, 1, vocab_size]."""
        if self._binding is None:
            rows = len(self.lengths)
            logits = np.empty((rows, 1, self._decoder.vocab_size), np.float32)
            self._binding = bind(self._sessions[0], self._values(slice(rows)), logits), logits
        return self._binding

    def _values(self, rows: slice) -> dict[str, Any]:
        values = import_onnxruntime().OrtValue
        return {
            past: values.ortvalue_from_numpy(array[rows]) for past, array in self._arrays.items()
        }


def bind(session: "GraphSession", buffers: Mapping[str, Any], logits: FloatArray) -> Any:
    """An IO binding with keys and values in place, and logits where the graph has them."""
    binding = session.io_binding()
    if any(output.name == LOGITS for output in session.get_outputs()):
        value = import_onnxruntime().OrtValue.ortvalue_from_numpy(logits)
        binding.bind_ortvalue_output(LOGITS, value)
    for past, buffer in buffers.items():
        binding.bind_ortvalue_input(past, buffer)
        binding.bind_ortvalue_output(present_name(past), buffer)
    return binding


def _past_dtypes(session: "GraphSession") -> dict[str, Any]:
    """What each of a decoder's inputs for keys and values holds."""
    types = {value.name: value.type for value in session.get_inputs()}
    return {name: CACHE_DTYPES[kind] for name, kind in types.items() if is_past(name)}


@contextmanager
def _enough_memory(positions: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ProviderError(
            f"no memory for keys and values of {positions} positions ({in_one_line(error)}); ask "
            "for fewer new tokens, or free some."
        ) from None
