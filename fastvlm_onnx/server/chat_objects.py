"""Answers as OpenAI's API writes them: completions, chunks, log-probabilities, usage, timings."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from fastvlm_onnx.runtime.answering.results import Generation, Piece
from fastvlm_onnx.runtime.text.tokenizer import TextTokenizer

JSON = dict[str, Any]


def end_of(generation: Generation) -> JSON:
    """Why an answer ended. OpenAI has no word for a time limit: its reason is `length`."""
    reason = generation.finish_reason
    if reason in ("stop", "length"):
        return {"finish_reason": reason}
    return {"finish_reason": "length", "stop_reason": reason}


def logprobs_of(
    tokenizer: TextTokenizer,
    token_ids: Sequence[int],
    logprobs: Sequence[float],
    top_logprobs: Sequence[Sequence[tuple[int, float]]] | None,
) -> JSON:
    """The `logprobs` of a choice or of a chunk's choice.

    Args:
        top_logprobs: (token id, log-probability) of the most probable tokens at each place.
    """

    def token(token_id: int, logprob: float) -> JSON:
        content = tokenizer.bytes_of(token_id)
        return {
            "token": content.decode("utf-8", "replace"),
            "logprob": logprob,
            "bytes": list(content),
        }

    tops = top_logprobs or [()] * len(token_ids)
    return {
        "content": [
            {
                **token(token_id, logprob),
                "top_logprobs": [token(other, likely) for other, likely in top],
            }
            for token_id, logprob, top in zip(token_ids, logprobs, tops, strict=True)
        ],
        "refusal": None,
    }


def usage_of(generations: Sequence[Generation]) -> JSON:
    """Tokens of a request; its answers share the prompt."""
    prompt = generations[0].prompt_tokens
    completion = sum(len(generation.token_ids) for generation in generations)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": generations[0].cached_tokens},
    }


def timings_of(generation: Generation) -> JSON:
    """llama-server's timings, and the stages before the first token.

    `prompt_n` counts the positions that were run, and `cache_n` those that a cache held.
    """
    times = generation.timings
    return {
        "cache_n": generation.cached_tokens,
        "prompt_n": generation.prompt_tokens - generation.cached_tokens,
        "prompt_ms": _ms(times.prefill),
        "predicted_n": len(generation.token_ids),
        "predicted_ms": _ms(times.decode),
        "predicted_per_second": round(times.tokens_per_second, 2),
        "waiting_ms": _ms(times.waiting),
        "preprocess_ms": _ms(times.preprocess),
        "vision_ms": _ms(times.vision),
        "first_token_ms": _ms(times.first_token),
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)


@dataclass(frozen=True)
class Header:
    """The fields that a completion and all chunks of one request share."""

    model: str
    fingerprint: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def completion(self, choices: Sequence[JSON], generations: Sequence[Generation]) -> JSON:
        """The body of an answer that is not streamed."""
        return {
            **self._fields("chat.completion"),
            "choices": choices,
            "usage": usage_of(generations),
            "timings": timings_of(generations[0]),
        }

    def chunk(self, choices: Sequence[JSON], **more: Any) -> JSON:
        """The data of an event of a stream."""
        return {**self._fields("chat.completion.chunk"), "choices": choices, **more}

    def _fields(self, kind: str) -> JSON:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


class AnswerWriter:
    """Writes the answers to one request."""

    def __init__(self, header: Header, tokenizer: TextTokenizer, *, has_usage: bool) -> None:
        """Begin with no answer.

        Args:
            has_usage: a stream ends with the usage.
        """
        self._header, self._tokenizer = header, tokenizer
        # In a stream with usage, all chunks have the field, and all but the last have null there.
        self._usage: JSON = {"usage": None} if has_usage else {}
        self._begun: set[int] = set()

    def completion(self, generations: Sequence[Generation]) -> JSON:
        """The body of answers that are not streamed."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": generation.text, "refusal": None},
                "logprobs": self._logprobs(generation),
                **end_of(generation),
            }
            for index, generation in enumerate(generations)
        ]
        return self._header.completion(choices, generations)

    def chunks(self, index: int, piece: Piece, timings: JSON | None) -> list[JSON]:
        """The chunks of a piece: its text, and the end where the answer ends.

        Args:
            index: the answer's.
            timings: for the last piece of the request.
        """
        delta: JSON = {}
        if index not in self._begun:
            self._begun.add(index)
            delta["role"] = "assistant"
        if piece.text or delta:
            delta["content"] = piece.text
        choices: list[JSON] = []
        if delta or piece.token_ids:
            logprobs = self._logprobs(piece)
            choices.append(
                {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
            )
        if piece.generation is not None:
            end = end_of(piece.generation)
            choices.append({"index": index, "delta": {}, "logprobs": None, **end})
        chunks = [self._header.chunk([choice], **self._usage) for choice in choices]
        if timings is not None:
            chunks[-1]["timings"] = timings
        return chunks

    def end(self, generations: Sequence[Generation], timings: JSON) -> list[JSON]:
        """The chunk after all answers, where the client asked for it.

        Other clients may expect a choice in every chunk.
        """
        if not self._usage:
            return []
        return [self._header.chunk([], usage=usage_of(generations), timings=timings)]

    def _logprobs(self, tokens: Piece | Generation) -> JSON | None:
        if tokens.logprobs is None:
            return None
        return logprobs_of(self._tokenizer, tokens.token_ids, tokens.logprobs, tokens.top_logprobs)
