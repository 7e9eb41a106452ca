"""Generation: prefill, sample, decode one step, sample, until the answer ends."""

from collections.abc import Callable, Iterator

from fastvlm_onnx.runtime.arrays import FloatArray
from fastvlm_onnx.runtime.engine.kv_cache import KVCache
from fastvlm_onnx.runtime.engine.language_model import LanguageModel

Accept = Callable[[FloatArray], int | None]
"""Takes logits float32 [vocab_size]; returns the token to run next, or None at the answer's end."""


def generate(
    model: LanguageModel,
    inputs_embeds: FloatArray,
    cache: KVCache,
    accept: Accept,
    *,
    is_greedy: bool = False,
) -> Iterator[int]:
    """Generate one answer.

    Args:
        inputs_embeds: the part of the prompt that the cache lacks, float32 [1, sequence_length,
            hidden_size].
        cache: has room for the prompt and for every token that `accept` returns.
        accept: samples a token and decides whether the answer goes on.
        is_greedy: `accept` reads nothing but the largest logit.

    Yields:
        Each token, before it is run. The last token of an answer is never run.
    """
    logits = model.prefill(inputs_embeds, cache, is_greedy=is_greedy)
    while (token_id := accept(logits)) is not None:
        yield token_id
        logits = model.decode_one_step(token_id, cache, is_greedy=is_greedy)
