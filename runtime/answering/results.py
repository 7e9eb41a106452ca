"""What an answer is: its text and ids, why it ended, and where the time went."""

from dataclasses import dataclass

from fastvlm_onnx.runtime.engine.decoding import FinishReason


@dataclass(frozen=True)
class Timings:
    """Seconds, but for the last field.

    Attributes:
        load: opening the package, once for all answers.
        preprocess: picture file -> pixel_values.
        vision: vision encoder and projector.
        prefill: the decoder's run over the whole prompt.
        first_token: from the call until the first token is there.
        decode: every token after the first.
        tokens_per_second: speed of decode; 0 if there was only one token.
    """

    load: float
    preprocess: float
    vision: float
    prefill: float
    first_token: float
    decode: float
    tokens_per_second: float


@dataclass(frozen=True)
class Generation:
    """One whole answer.

    Attributes:
        text: the answer, white space at its ends and special tokens left out.
        token_ids: what was generated, without the eos.
        finish_reason: "stop" after an eos or before a stop string, "length" at max_new_tokens or a
            full context, "time" at max_time.
        prompt_tokens: positions before the answer, image tokens and earlier turns included.
        providers: ONNX Runtime's name of the execution provider of each graph.
        logprobs: of each of token_ids, where asked for; see `Sampler`.
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


@dataclass(frozen=True)
class Piece:
    """Text as it comes; the last piece, whose text may be empty, carries the whole answer."""

    text: str
    generation: Generation | None = None
