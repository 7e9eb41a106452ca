"""The decoder's graphs with their caches: embeddings in, logits out."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from fastvlm_onnx.names import ATTENTION_MASK, HIDDEN_STATES, INPUTS_EMBEDS
from fastvlm_onnx.package import DecoderFormat
from fastvlm_onnx.runtime.arrays import FloatArray
from fastvlm_onnx.runtime.engine.kv_cache import BatchCache, KVCache
from fastvlm_onnx.runtime.engine.lm_head import ScreenedHead
from fastvlm_onnx.runtime.ort.session import GraphSession
from fastvlm_onnx.second_pass import SecondPass

ONE_TOKEN: Final = 1
# The activations of a longer prompt take more memory than those of an image, and it is released
# after the prompt. To release it after each prompt costs 6 to 12 ms of the next one.
LONG_PROMPT: Final = 1024


class Decoder:
    """The decoder graph, and graphs for the prompt and for lm_head where a variant has its own.

    The decoder and the prefill graph fill one cache. Any number of caches may be in use at once.
    """

    def __init__(
        self,
        session: GraphSession,
        sizes: DecoderFormat,
        prefill_session: GraphSession | None = None,
        lm_head: ScreenedHead | None = None,
        second_pass: SecondPass | None = None,
    ) -> None:
        """Take the open graphs.

        Args:
            session: the graph that computes logits, or the hidden states that `lm_head` reads.
            sizes: the decoder's sizes from the manifest.
            prefill_session: a graph for prompts without logits. It runs the last position of a
                prompt too if it has hidden states for `lm_head`, and otherwise all but the last.
                `session` runs every position when None.
            lm_head: computes logits; None where `session` does.
            second_pass: when `prefill_session` runs the last positions of an answer again. It is
                read only where `prefill_session` has hidden states for `lm_head`.
        """
        self._lm_head = lm_head
        self.session, self.prefill_session, self.sizes = session, prefill_session, sizes
        self._sessions = [session] if prefill_session is None else [session, prefill_session]
        self._prefills_whole_prompts = (
            lm_head is not None
            and prefill_session is not None
            and any(output.name == HIDDEN_STATES for output in prefill_session.get_outputs())
        )
        self._second_pass = second_pass if self._prefills_whole_prompts else None
        self._max_steps = self._second_pass.positions if self._second_pass else 0
        self._mask = np.ones((1, sizes.context_length), np.int64)

    def new_cache(self, capacity: int) -> KVCache:
        """Allocate an empty cache for `capacity` positions in the decoder's memory."""
        return KVCache(self._sessions, self.sizes, capacity, max_steps=self._max_steps)

    def new_batch(self, rows: int = 0, capacity: int = 0) -> BatchCache:
        """Allocate an empty batch.

        Args:
            rows: rows to reserve memory for; the batch grows past them.
            capacity: positions of each row to reserve memory for; the batch grows past them.
        """
        return BatchCache(self._sessions, self.sizes, rows, capacity, self._max_steps)

    def run(
        self, inputs_embeds: FloatArray, cache: KVCache, *, is_greedy: bool = False
    ) -> FloatArray:
        """Append positions to a cache.

        Args:
            inputs_embeds: float32 [1, sequence_length, hidden_size], contiguous.
            is_greedy: only the largest logit is needed; others may be minus infinity.

        Returns:
            Logits of the last position, float32 [vocab_size]. The next run overwrites them.
        """
        if self.prefill_session is None or inputs_embeds.shape[1] == ONE_TOKEN:
            self._append(self.session, inputs_embeds, cache)
        elif self._prefills_whole_prompts:
            self._append(self.prefill_session, inputs_embeds, cache)
        else:
            self._append(self.prefill_session, inputs_embeds[:, :-1], cache)
            self._append(self.session, inputs_embeds[:, -1:], cache)
        self._compute_logits(cache, is_greedy)
        if cache.steps and self._is_close(cache.outputs.logits[0, 0]):
            self._run_again(cache, is_greedy)
        return cache.outputs.logits[0, 0]

    def append(self, inputs_embeds: FloatArray, cache: KVCache) -> None:
        """Append positions of a prompt that goes on, without logits.

        Args:
            inputs_embeds: float32 [1, sequence_length, hidden_size], contiguous.
        """
        self._append(self.prefill_session or self.session, inputs_embeds, cache)

    def run_batch(
        self, inputs_embeds: FloatArray, batch: BatchCache, is_greedy: Sequence[bool] | None = None
    ) -> FloatArray:
        """Append one position to each row of a batch.

        Args:
            inputs_embeds: float32 [rows, 1, hidden_size].
            is_greedy: for each row, whether only its largest logit is needed; others may be minus
                infinity. No row is greedy when None.

        Returns:
            Logits, float32 [rows, vocab_size]. The next run overwrites them.
        """
        binding, outputs = batch.binding()
        binding.bind_cpu_input(INPUTS_EMBEDS, np.ascontiguousarray(inputs_embeds))
        binding.bind_cpu_input(ATTENTION_MASK, batch.step_mask())
        self.session.run_with_iobinding(binding)
        batch.advance(inputs_embeds)
        if self._lm_head is not None:
            rows = is_greedy or [False] * len(batch.lengths)
            self._lm_head.compute(outputs.hidden_states, outputs.logits, rows)
            for index, row_is_greedy in enumerate(rows):
                if self._is_close(outputs.logits[index, 0]):
                    # Each row alone: as a part of the batch, its neighbours would be run again too.
                    row = batch.row(index)
                    self._run_again(row, row_is_greedy)
                    outputs.logits[index] = row.outputs.logits[0]
        return outputs.logits[:, 0]

    def _is_close(self, logits: FloatArray) -> bool:
        """Return whether the prefill graph is to decide between the largest logits."""
        if self._second_pass is None:
            return False
        best = int(logits.argmax())
        others = logits[:best].max(initial=-np.inf), logits[best + 1 :].max(initial=-np.inf)
        return bool(logits[best] - max(others) < self._second_pass.margin)

    def _run_again(self, cache: KVCache, is_greedy: bool) -> None:
        """Run the last steps by the prefill graph, which replaces their keys and values.

        All of them take little more time than the last alone, whose time is that of reading the
        weights.
        """
        assert self.prefill_session is not None
        inputs_embeds = np.concatenate(cache.steps, axis=1)
        cache.truncate(cache.length - len(cache.steps))
        self._append(self.prefill_session, inputs_embeds, cache, is_prompt=False)
        self._compute_logits(cache, is_greedy)

    def _compute_logits(self, cache: KVCache, is_greedy: bool) -> None:
        if self._lm_head is not None:
            self._lm_head.compute(cache.outputs.hidden_states, cache.outputs.logits, [is_greedy])

    def _append(
        self,
        session: GraphSession,
        inputs_embeds: FloatArray,
        cache: KVCache,
        *,
        is_prompt: bool = True,
    ) -> None:
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
        is_long = is_prompt and total > LONG_PROMPT and not is_step
        session.run_with_iobinding(binding, returns_memory=is_long)
        cache.advance(session, total)
        if session is self.session and is_step:
            cache.steps.append(inputs_embeds)
        else:
            cache.steps.clear()
