"""From the decoder's input to the pieces of an answer."""

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastvlm_onnx.runtime.answering.results import Generation, Piece, Timings
from fastvlm_onnx.runtime.engine.decoding import FinishReason, decode, prefill
from fastvlm_onnx.runtime.engine.kv_cache import KVCache
from fastvlm_onnx.runtime.engine.options import Settings
from fastvlm_onnx.runtime.engine.sampling import Sampler
from fastvlm_onnx.runtime.text.text_stream import AnswerText

if TYPE_CHECKING:
    from fastvlm_onnx.runtime.model import FastVLM

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Marks:
    """When the steps before the prefill ended, on time.perf_counter's clock.

    Attributes:
        began: the call.
    """

    began: float
    preprocessed: float
    encoded: float


def answer(
    model: "FastVLM",
    inputs_embeds: FloatArray,
    cache: KVCache,
    settings: Settings,
    max_new_tokens: int,
    marks: Marks,
    token_ids: list[int],
) -> Generator[Piece, None, None]:
    """Prefill and decode.

    Args:
        inputs_embeds: float32 [1, sequence_length, hidden_size], what the cache lacks.
        max_new_tokens: no more than the cache has room for.
        token_ids: the answer's, written as they come, for whoever closes the iterator early.
    """
    decoder, embed_tokens = model._decoder, model._embed_tokens
    sample = Sampler(settings)

    # 1. Prefill: all positions at once.
    logits = prefill(decoder, inputs_embeds, cache)
    prompt_tokens = cache.length
    prefilled = first_token = time.perf_counter()

    # 2. Decode: one token at a time, its text as soon as it is whole.
    tokens = decode(
        decoder,
        embed_tokens,
        sample,
        logits,
        cache,
        max_new_tokens,
        model.manifest.decoder.eos_token_ids,
    )
    text = AnswerText(model._tokenizer, settings.stop)
    finish_reason: FinishReason | None = None
    while finish_reason is None:
        try:
            token_id = next(tokens)
        except StopIteration as end:
            finish_reason = end.value
            break
        now = time.perf_counter()
        if not token_ids:
            first_token = now
        token_ids.append(token_id)
        if settings.on_token:
            settings.on_token(token_id)
        if shown := text.add(token_id):
            yield Piece(shown)
        finish_reason = why_ended(text, settings, now - marks.began)
    rest = text.finish()
    ended = time.perf_counter()

    # 3. The last piece carries the whole answer.
    yield Piece(
        rest,
        generation_of(
            model,
            text,
            token_ids,
            finish_reason,
            prompt_tokens,
            Timings(
                load=model.load_seconds,
                preprocess=marks.preprocessed - marks.began,
                vision=marks.encoded - marks.preprocessed,
                prefill=prefilled - marks.encoded,
                first_token=first_token - marks.began,
                decode=ended - first_token,
                tokens_per_second=rate(cache.length - prompt_tokens, ended - first_token),
            ),
            sample.logprobs,
        ),
    )


def why_ended(text: AnswerText, settings: Settings, seconds: float) -> FinishReason | None:
    """What ends an answer after a token, but for its number."""
    if text.has_stopped:
        return "stop"
    return "time" if settings.max_time is not None and seconds >= settings.max_time else None


def rate(runs: int, seconds: float) -> float:
    """Decoder runs a second after the first token; 0 where there were none."""
    return runs / seconds if runs > 0 and seconds > 0 else 0.0


def generation_of(
    model: "FastVLM",
    text: AnswerText,
    token_ids: list[int],
    finish_reason: FinishReason,
    prompt_tokens: int,
    timings: Timings,
    logprobs: list[float] | None,
) -> Generation:
    """The record of an answer that has come to its end."""
    return Generation(
        text=text.text,
        token_ids=list(token_ids),
        finish_reason=finish_reason,
        prompt_tokens=prompt_tokens,
        timings=timings,
        model=model.manifest.source.name,
        precision=model.precision,
        providers=dict(model.providers),
        # An eos is drawn too, and is no token of the answer.
        logprobs=None if logprobs is None else logprobs[: len(token_ids)],
    )


def last_of(pieces: Iterator[Piece]) -> Generation:
    """The whole answer, once it is there."""
    *_, last = pieces
    assert last.generation is not None
    return last.generation
