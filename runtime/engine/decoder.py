"""The decoder's graphs with their caches: embeddings in, logits out."""

from typing import Final

import numpy as np

from fastvlm_onnx.names import ATTENTION_MASK, INPUTS_EMBEDS
from fastvlm_onnx.package import DecoderFormat
from fastvlm_onnx.runtime.arrays import FloatArray
from fastvlm_onnx.runtime.engine.kv_cache import BatchCache, KVCache
from fastvlm_onnx.runtime.ort.session import GraphSession

ONE_TOKEN: Final = 1


class Decoder:
    """The decoder graph, and the prefill graph where a variant has its own.

    Both graphs fill the same cache. Any number of caches may be in use at once.
    """

    def __init__(
        self,
        session: GraphSession,
        sizes: DecoderFormat,
        prefill_session: GraphSession | None = None,
    ) -> None:
        """Take the open graphs.

        Args:
            session: the graph that computes logits.
            sizes: the decoder's sizes from the manifest.
            prefill_session: a graph without logits for all positions of a prompt but the last;
                `session` runs every position when None.
        """
        self.session, self.prefill_session, self.sizes = session, prefill_session, sizes
        self._sessions = [session] if prefill_session is None else [session, prefill_session]
        self._mask = np.ones((1, sizes.context_length), np.int64)

    def new_cache(self, capacity: int) -> KVCache:
        """Allocate an empty cache for `capacity` positions in the decoder's memory."""
        return KVCache(self._sessions, self.sizes, capacity)

    def new_batch(self, rows: int = 0, capacity: int = 0) -> BatchCache:
        """Allocate an empty batch.

        Args:
            rows: rows to reserve memory for; the batch grows past them.
            capacity: positions of each row to reserve memory for; the batch grows past them.
        """
        return BatchCache(self._sessions, self.sizes, rows, capacity)

    def run(self, inputs_embeds: FloatArray, cache: KVCache) -> FloatArray:
        """Append positions to a cache.

        Args:
            inputs_embeds: float32 [1, sequence_length, hidden_size], contiguous.

        Returns:
            Logits of the last position, float32 [vocab_size]. The next run overwrites them.
        """
        if self.prefill_session is not None and inputs_embeds.shape[1] > ONE_TOKEN:
            self._append(self.prefill_session, inputs_embeds[:, :-1], cache)
            inputs_embeds = inputs_embeds[:, -1:]
        self._append(self.session, inputs_embeds, cache)
        return cache.logits[0, 0]

    def append(self, inputs_embeds: FloatArray, cache: KVCache) -> None:
        """Append positions of a prompt that goes on, without logits.

        Args:
            inputs_embeds: float32 [1, sequence_length, hidden_size], contiguous.
        """
        self._append(self.prefill_session or self.session, inputs_embeds, cache)

    def run_batch(self, inputs_embeds: FloatArray, batch: BatchCache) -> FloatArray:
        """Append one position to each row of a batch.

        Args:
            inputs_embeds: float32 [rows, 1, hidden_size].

        Returns:
            Logits, float32 [rows, vocab_size]. The next run overwrites them.
        """
        binding, logits = batch.binding()
        lengths = batch.lengths + 1
        # Rows are padded on the right, so the mask says how much of each row counts.
        mask = np.arange(lengths.max()) < lengths[:, None]
        binding.bind_cpu_input(INPUTS_EMBEDS, np.ascontiguousarray(inputs_embeds))
        binding.bind_cpu_input(ATTENTION_MASK, mask.astype(np.int64))
        self.session.run_with_iobinding(binding)
        batch.lengths = lengths
        return logits[:, 0]

    def _append(self, session: GraphSession, inputs_embeds: FloatArray, cache: KVCache) -> None:
        total = cache.length + inputs_embeds.shape[1]
        assert total <= cache.capacity
        binding = cache.binding(session)
        is_step = inputs_embeds.shape[1] == ONE_TOKEN
        if is_step:
            # The token's buffer stays at one address, on any device.
            cache.token.update_inplace(np.ascontiguousarray(inputs_embeds))
            binding.bind_ortvalue_input(INPUTS_EMBEDS, cache.token)
        else:
            binding.bind_cpu_input(INPUTS_EMBEDS, inputs_embeds)
        binding.bind_cpu_input(ATTENTION_MASK, self._mask[:, :total])
        # A prompt's activations take many times the memory of a step's.
        session.run_with_iobinding(binding, returns_memory=not is_step)
        cache.length = total
