"""The records that an answer leaves: its text and token ids, why it ended, where the time went."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastvlm_onnx.runtime.engine.options import TopLogprobs

FinishReason = Literal["stop", "length", "time", "cancelled"]


@dataclass(frozen=True)
class Timings:
    """Seconds, but for tokens_per_second.

    Attributes:
        load: opening the package; the same for every answer.
        preprocess: image file -> pixel_values.
        vision: vision encoder and projector.
        prefill: the decoder's run over the prompt.
        first_token: from the call until the first token is there.
        decode: all tokens after the first.
        tokens_per_second: speed of `decode`; 0 if there was only one token.
        waiting: for other answers, before the prefill; 0 for a lone answer.
    """

    load: float
    preprocess: float
    vision: float
    prefill: float
    first_token: float
    decode: float
    tokens_per_second: float
    waiting: float = 0.0


@dataclass(frozen=True)
class Generation:
    """A whole answer.

    Attributes:
        text: the answer without special tokens, and without white space at its ends unless a
            regular expression or a choice has it there.
        token_ids: the generated tokens without the end token.
        finish_reason: "stop" at an end token, at a stop text or at the end of a structured answer,
            "length" at max_new_tokens or at the end of the context, "time" at max_time,
            "cancelled" where the caller cancelled it.
        prompt_tokens: positions before the answer, those of images and of earlier turns included.
        timings: where the time went.
        model: the package's name.
        precision: the package's variant.
        providers: ONNX Runtime's name of the execution provider of each graph.
        logprobs: natural logarithm of each token's probability, where asked for; else None.
        parsed: the JSON value of an answer to a schema; None for other answers, and for an answer
            that ended before its JSON did.
        top_logprobs: the most probable tokens at each token's position with the logarithms of
            their probabilities, where asked for; else None.
        cached_tokens: the part of prompt_tokens whose keys and values were there before the call.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    prompt_tokens: int
    timings: Timings
    model: str
    precision: str
    providers: dict[str, str]
    logprobs: list[float] | None = None
    parsed: Any = None
    top_logprobs: list[TopLogprobs] | None = None
    cached_tokens: int = 0


@dataclass(frozen=True)
class Piece:
    """A piece of an answer's text as it comes.

    Attributes:
        text: may be empty in the last piece.
        generation: the whole answer in the last piece, else None.
        token_ids: the tokens that came since the piece before. Text that may yet change is held
            back, so the text of a token may be in a later piece.
        logprobs: as in `Generation`, of these tokens.
        top_logprobs: as in `Generation`, of these tokens.
    """

    text: str
    generation: Generation | None = None
    token_ids: Sequence[int] = ()
    logprobs: Sequence[float] | None = None
    top_logprobs: Sequence[TopLogprobs] | None = None
