"""The generation loop, in ids and arrays only: no text, no pictures."""

from collections.abc import Callable, Collection, Generator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fastvlm_onnx.runtime.engine.kv_cache import KVCache
from fastvlm_onnx.runtime.engine.token_embedding import TokenEmbedding
from fastvlm_onnx.runtime.ort.session import DecoderSession

FloatArray = NDArray[np.float32]
FinishReason = Literal["stop", "length", "time"]


def prefill(decoder: DecoderSession, inputs_embeds: FloatArray, cache: KVCache) -> FloatArray:
    """Run the whole prompt once and fill the cache.

    Args:
        inputs_embeds: float32 [1, sequence_length, hidden_size], image rows already in place.

    Returns:
        Logits of the last position, float32 [vocab_size].

    Source: Qwen2 (arXiv 2407.10671); positions 0 .. sequence_length - 1.
    """
    return decoder.run(inputs_embeds, cache)


def decode_one_token(
    decoder: DecoderSession, embed_tokens: TokenEmbedding, token_id: int, cache: KVCache
) -> FloatArray:
    """Append one token to the cache; logits float32 [vocab_size] for the one after it."""
    return decoder.run(embed_tokens([token_id])[None], cache)


def decode(
    decoder: DecoderSession,
    embed_tokens: TokenEmbedding,
    sample: Callable[[FloatArray], int],
    first_logits: FloatArray,
    cache: KVCache,
    max_new_tokens: int,
    eos_token_ids: Collection[int],
) -> Generator[int, None, FinishReason]:
    """Yield token ids until an eos, which is not yielded, or `max_new_tokens`.

    Returns (as the generator's value):
        "stop" after an eos, "length" otherwise.
    """
    token_id = sample(first_logits)
    for _ in range(max_new_tokens - 1):
        if token_id in eos_token_ids:
            return "stop"
        yield token_id
        token_id = sample(decode_one_token(decoder, embed_tokens, token_id, cache))
    if token_id in eos_token_ids:
        return "stop"
    yield token_id
    return "length"
