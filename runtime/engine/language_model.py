"""The language model: token ids and embeddings in, logits out; no text and no images."""

from collections.abc import Iterator, Sequence

import numpy as np

from fastvlm_onnx.package import DecoderFormat
from fastvlm_onnx.runtime.arrays import FloatArray
from fastvlm_onnx.runtime.engine.decoder import Decoder
from fastvlm_onnx.runtime.engine.kv_cache import BatchCache, KVCache
from fastvlm_onnx.runtime.engine.prefix_cache import PrefixCache, PromptKey
from fastvlm_onnx.runtime.engine.token_embedding import TokenEmbedding

PromptPart = Sequence[int] | FloatArray
"""Token ids, or rows that already are embeddings: float32 [rows, hidden_size]."""


class LanguageModel:
    """Qwen2 as the package holds it. Any number of threads may use it, each with its own caches.

    Attributes:
        sizes: the decoder's sizes, among them `context_length` and `eos_token_ids`.
        decoder: the graphs.
        embed_tokens: token ids -> embeddings.
    """

    def __init__(
        self, decoder: Decoder, embed_tokens: TokenEmbedding, sizes: DecoderFormat
    ) -> None:
        self.decoder, self.embed_tokens, self.sizes = decoder, embed_tokens, sizes

    def embed(self, parts: Sequence[PromptPart]) -> FloatArray:
        """Embed a prompt.

        Args:
            parts: token ids and rows of image features, in any number and order.

        Returns:
            inputs_embeds, float32 [1, sequence_length, hidden_size].
        """
        rows = [p if isinstance(p, np.ndarray) else self.embed_tokens(p) for p in parts]
        return np.concatenate(rows)[None]

    def new_cache(self, capacity: int) -> KVCache:
        """An empty cache for one sequence of at most `capacity` positions."""
        return self.decoder.new_cache(capacity)

    def new_batch(self, rows: int = 0, capacity: int = 0) -> BatchCache:
        """An empty cache for several sequences; both arguments only reserve memory."""
        return self.decoder.new_batch(rows, capacity)

    @staticmethod
    def start_from_prefix(cache: KVCache, key: PromptKey, prefixes: PrefixCache) -> int:
        """Fill an empty cache with the longest known beginning of a prompt.

        The prompt's last position is left to be run in any case, for its logits.

        Args:
            key: a value for each position of the prompt.
            prefixes: keys and values of earlier prompts of this model.

        Returns:
            The number of positions that were known.
        """
        for keys_values in prefixes.find(key[:-1]):
            cache.append(keys_values)
        return cache.length

    def prefill(
        self, inputs_embeds: FloatArray, cache: KVCache, *, is_greedy: bool = False
    ) -> FloatArray:
        """Run a prompt, or the part of it that the cache lacks, in one pass.

        Args:
            inputs_embeds: float32 [1, sequence_length, hidden_size].
            is_greedy: only the largest logit is needed, which some packages compute sooner; others
                may be minus infinity.

        Returns:
            Logits of the last position, float32 [vocab_size]. The next run overwrites them.

        Raises:
            ProviderError: the provider failed.

        Source: Qwen2 (arXiv 2407.10671).
        """
        return self.decoder.run(inputs_embeds, cache, is_greedy=is_greedy)

    def prefill_part(self, inputs_embeds: FloatArray, cache: KVCache) -> None:
        """Run a part of a prompt that is not its last part.

        Args:
            inputs_embeds: float32 [1, sequence_length, hidden_size].

        Raises:
            ProviderError: the provider failed.
        """
        self.decoder.append(inputs_embeds, cache)

    def decode_one_step(
        self, token_id: int, cache: KVCache, *, is_greedy: bool = False
    ) -> FloatArray:
        """Append one token to a cache.

        Args:
            token_id: the token.
            cache: the sequence so far.
            is_greedy: only the largest logit is needed; see `prefill`.

        Returns:
            Logits for the next token, float32 [vocab_size]. The next run overwrites them.
        """
        return self.decoder.run(self.embed_tokens([token_id])[None], cache, is_greedy=is_greedy)

    def decode_one_batch_step(
        self, token_ids: Sequence[int], batch: BatchCache, is_greedy: Sequence[bool] | None = None
    ) -> FloatArray:
        """Append one token to each row of a batch.

        Args:
            token_ids: one for each row.
            is_greedy: for each row, whether only its largest logit is needed; see `prefill`.

        Returns:
            Logits for each row's next token, float32 [rows, vocab_size]. The next run overwrites
            them.
        """
        return self.decoder.run_batch(self.embed_tokens(token_ids)[:, None], batch, is_greedy)

    def teacher_forced_logits(
        self, inputs_embeds: FloatArray, token_ids: Sequence[int]
    ) -> Iterator[FloatArray]:
        """Logits at each step of a given answer.

        Args:
            inputs_embeds: the prompt, float32 [1, sequence_length, hidden_size].
            token_ids: the answer, at least one token.

        Yields:
            Logits float32 [vocab_size] before each of `token_ids`. The next step overwrites them.
        """
        cache = self.new_cache(inputs_embeds.shape[1] + len(token_ids))
        yield self.prefill(inputs_embeds, cache)
        for token_id in token_ids[:-1]:
            yield self.decode_one_step(token_id, cache)
