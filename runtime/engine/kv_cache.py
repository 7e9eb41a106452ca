"""Keys and values of every layer, in buffers that most decoder graphs write in place."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvlm_onnx.errors import ProviderError
from fastvlm_onnx.names import HIDDEN_STATES, LOGITS, is_past, present_name
from fastvlm_onnx.package import DecoderFormat
from fastvlm_onnx.runtime.arrays import FloatArray
from fastvlm_onnx.runtime.engine.cache_types import (
    BFLOAT16,
    CACHE_TYPES,
    CacheType,
    array_of_pages,
    host_array,
)
from fastvlm_onnx.runtime.engine.growth import MEMORY, Growth
from fastvlm_onnx.runtime.engine.prefix_cache import KeysValues
from fastvlm_onnx.runtime.ort.providers import import_onnxruntime, in_one_line
from fastvlm_onnx.runtime.ort.session import GraphSession


class Outputs:
    """The arrays that take a decoder's outputs of the last position.

    Attributes:
        logits: float32 [rows, 1, vocab_size], written by each run of a graph that has logits, and
            otherwise by lm_head.
        hidden_states: float32 [rows, 1, hidden_size], written by a graph without lm_head.
    """

    def __init__(self, rows: int, sizes: DecoderFormat) -> None:
        self.logits = np.empty((rows, 1, sizes.vocab_size), np.float32)
        self.hidden_states = np.empty((rows, 1, sizes.hidden_size), np.float32)


class KVCache:
    """The keys and values of one sequence.

    Each layer has a buffer for keys and a buffer for values, bound as past and as present.
    GroupQueryAttention finds both names on the same memory and appends in place. A decoder of
    standard operators reads and fills the buffers through `Growth`. Several graphs may fill one
    cache in turn.

    Attributes:
        token: OrtValue float32 [1, 1, hidden_size], the decoder's input where it is one token.
        outputs: of one row.
        steps: the inputs of the last positions, float32 [1, 1, hidden_size] each, that ran one by
            one since the last run of several. There are `max_steps` of them at most.
        length: positions filled.
        capacity: positions there is room for.
    """

    def __init__(
        self,
        sessions: Sequence[GraphSession],
        sizes: DecoderFormat,
        capacity: int,
        buffers: Mapping[str, Any] | None = None,
        max_steps: int = 0,
    ) -> None:
        """Allocate the cache where the sessions' tensors live.

        Args:
            buffers: OrtValues [1, num_key_value_heads, capacity, head_dim] by the past input that
                they hold; new buffers when None.
            max_steps: the most inputs that `steps` keeps.

        Raises:
            ProviderError: there is not enough memory.
        """
        values = import_onnxruntime().OrtValue
        memory = MEMORY if sizes.cache_grows else sessions[0].choice.memory
        types = _past_types(sessions[0])
        self.length, self.capacity = 0, capacity
        self.steps: deque[FloatArray] = deque(maxlen=max_steps)
        self.outputs = Outputs(1, sizes)
        shape = (1, sizes.num_key_value_heads, capacity, sizes.head_dim)
        with _enough_memory(capacity):
            self.token = values.ortvalue_from_shape_and_type(
                (1, 1, sizes.hidden_size), np.float32, memory
            )
            # Positions that are not filled are never read, and take no memory until then.
            buffers = buffers or {
                past: values.ortvalue_from_shape_and_type(shape, _allocated_as(kind), memory)
                for past, kind in types.items()
            }
            in_place = {} if sizes.cache_grows else buffers
            self._bindings = {
                id(session): bind(session, in_place, self.outputs) for session in sessions
            }
        self._buffers = [(value, types[past].storage) for past, value in buffers.items()]
        self._growth = None
        if sizes.cache_grows:
            self._growth = Growth(
                {past: host_array(value, types[past].storage) for past, value in buffers.items()}
            )

    def binding(self, session: GraphSession) -> Any:
        """The session's IO binding, complete but for inputs_embeds and attention_mask."""
        binding = self._bindings[id(session)]
        if self._growth:
            self._growth.bind(binding, [self.length])
        return binding

    def advance(self, session: GraphSession, total: int) -> None:
        """Take the positions that a run of the session's binding appended.

        Args:
            session: the graph that ran.
            total: the positions that are filled now.
        """
        if self._growth:
            self._growth.collect(self._bindings[id(session)], [self.length])
        self.length = total

    def truncate(self, length: int) -> None:
        """Forget the positions from `length` on."""
        self.steps.clear()
        self.length = length

    def read(self, begin: int, end: int) -> KeysValues:
        """Copy the keys and values of positions `begin` to `end`."""
        arrays = [host_array(value, storage) for value, storage in self._buffers]
        return np.stack([array[0, :, begin:end] for array in arrays])

    def append(self, keys_values: KeysValues) -> None:
        """Append positions that were read from a cache of the same model."""
        self.steps.clear()
        total = self.length + keys_values.shape[2]
        assert total <= self.capacity
        for (value, storage), positions in zip(self._buffers, keys_values, strict=True):
            array = host_array(value, storage)
            array[0, :, self.length : total] = positions
            if value.device_name() != "cpu":
                value.update_inplace(array)
        self.length = total


class BatchCache:
    """The keys and values of several sequences, a row for each.

    Rows join and leave between two steps. The buffers are this process's own arrays, so rows can be
    moved and the buffers can grow.

    Attributes:
        lengths: int64 [rows], positions filled.
    """

    def __init__(
        self,
        sessions: Sequence[GraphSession],
        sizes: DecoderFormat,
        rows: int,
        capacity: int,
        max_steps: int = 0,
    ) -> None:
        """Reserve memory.

        Args:
            max_steps: the most inputs that are kept of each row; see `KVCache`.

        Raises:
            ProviderError: there is not enough memory.
        """
        self._sessions, self._sizes, self._max_steps = sessions, sizes, max_steps
        self._steps: list[deque[FloatArray]] = []
        self._types = _past_types(sessions[0])
        self.lengths = np.zeros(0, np.int64)
        self._rows, self._capacity = 0, 0
        self._arrays: dict[str, NDArray[Any]] = {}
        self._binding: tuple[Any, Outputs, Growth | None] | None = None
        self._reserve(rows, capacity)

    def new_row(self, capacity: int) -> KVCache:
        """Make room for another row, to be filled by itself before `admit`.

        Args:
            capacity: positions that the row needs.

        Raises:
            ProviderError: there is not enough memory.
        """
        row = len(self.lengths)
        self._reserve(row + 1, capacity)
        return self._cache_of(row)

    def admit(self, row: KVCache) -> None:
        """Take the row of the last `new_row` into the batch; it comes last."""
        self.lengths = np.append(self.lengths, row.length)
        self._steps.append(row.steps)
        self._binding = None

    def row(self, row: int) -> KVCache:
        """A row as a cache of its own, over the same memory, until rows join or leave."""
        cache = self._cache_of(row)
        cache.length, cache.steps = int(self.lengths[row]), self._steps[row]
        return cache

    def _cache_of(self, row: int) -> KVCache:
        values = self._values(slice(row, row + 1))
        return KVCache(self._sessions, self._sizes, self._capacity, values, self._max_steps)

    def read(self, row: int, begin: int, end: int) -> KeysValues:
        """Copy the keys and values of a row's positions `begin` to `end`."""
        return np.stack([array[row, :, begin:end] for array in self._arrays.values()])

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these, given in ascending order; they move to the front."""
        for to, row in enumerate(rows):
            if to != row:
                filled = self.lengths[row]
                for array in self._arrays.values():
                    array[to, :, :filled] = array[row, :, :filled]
        self.lengths = self.lengths[list(rows)]
        self._steps = [self._steps[row] for row in rows]
        self._binding = None

    def binding(self) -> tuple[Any, Outputs]:
        """An IO binding over all rows, and the arrays that take their outputs.

        It is complete but for inputs_embeds and attention_mask.
        """
        if self._binding is None:
            rows, grows = len(self.lengths), self._sizes.cache_grows
            outputs = Outputs(rows, self._sizes)
            in_place = {} if grows else self._values(slice(rows))
            arrays = {past: array[:rows] for past, array in self._arrays.items()}
            bound = bind(self._sessions[0], in_place, outputs)
            self._binding = bound, outputs, Growth(arrays) if grows else None
        binding, outputs, growth = self._binding
        if growth:
            growth.bind(binding, self.lengths.tolist())
        return binding, outputs

    def step_mask(self) -> NDArray[np.int64]:
        """The mask of a run that appends one position to each row, int64 [rows, total]."""
        filled = np.arange(self.lengths.max() + 1)
        if self._sizes.cache_grows:  # the new position comes after the longest row
            counts = (filled < self.lengths[:, None]) | (filled == filled[-1])
        else:
            counts = filled <= self.lengths[:, None]
        return counts.astype(np.int64)

    def advance(self, inputs_embeds: FloatArray) -> None:
        """Take the position that a run of the binding appended to each row.

        Args:
            inputs_embeds: the run's input, float32 [rows, 1, hidden_size].
        """
        for steps, step in zip(self._steps, inputs_embeds, strict=True):
            steps.append(step[None])
        assert self._binding is not None
        binding, _, growth = self._binding
        if growth:
            growth.collect(binding, self.lengths.tolist())
        self.lengths = self.lengths + 1

    def _reserve(self, rows: int, capacity: int) -> None:
        """Grow the buffers to at least this size, and keep what the rows hold."""
        if not (rows and capacity) or (rows <= self._rows and capacity <= self._capacity):
            return
        if rows > self._rows > 0:
            rows = max(rows, 2 * self._rows)  # rows that join one by one are not copied each time
        rows, capacity = max(rows, self._rows), max(capacity, self._capacity)
        shape = (rows, self._sizes.num_key_value_heads, capacity, self._sizes.head_dim)
        with _enough_memory(rows * capacity):
            grown = {
                past: array_of_pages(shape, kind.storage) for past, kind in self._types.items()
            }
        for past, array in self._arrays.items():
            for row, filled in enumerate(self.lengths):
                grown[past][row, :, :filled] = array[row, :, :filled]
        self._arrays, self._rows, self._capacity = grown, rows, capacity
        self._binding = None

    def _values(self, rows: slice) -> dict[str, Any]:
        """OrtValues over the arrays' own memory, by past input."""
        values = import_onnxruntime().OrtValue
        return {
            past: values.ortvalue_from_numpy(array[rows])
            if self._types[past] != BFLOAT16
            else values.ortvalue_from_numpy_with_onnx_type(array[rows], BFLOAT16.onnx)
            for past, array in self._arrays.items()
        }


def bind(session: GraphSession, buffers: Mapping[str, Any], outputs: Outputs) -> Any:
    """An IO binding with keys and values in place, and the outputs that the graph has."""
    binding = session.io_binding()
    names = {output.name for output in session.get_outputs()}
    for name, array in ((LOGITS, outputs.logits), (HIDDEN_STATES, outputs.hidden_states)):
        if name in names:
            value = import_onnxruntime().OrtValue.ortvalue_from_numpy(array)
            binding.bind_ortvalue_output(name, value)
    for past, buffer in buffers.items():
        binding.bind_ortvalue_input(past, buffer)
        binding.bind_ortvalue_output(present_name(past), buffer)
    return binding


def _past_types(session: GraphSession) -> dict[str, CacheType]:
    """The number format of each of a decoder's past inputs."""
    types = {value.name: value.type for value in session.get_inputs()}
    return {name: CACHE_TYPES[kind] for name, kind in types.items() if is_past(name)}


def _allocated_as(kind: CacheType) -> Any:
    """The type's name as OrtValue's constructor takes it: numpy's, or ONNX's number."""
    return kind.onnx if kind == BFLOAT16 else kind.storage


@contextmanager
def _enough_memory(positions: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ProviderError(
            f"no memory for keys and values of {positions} positions ({in_one_line(error)}); ask "
            "for fewer new tokens, or free some memory."
        ) from None
