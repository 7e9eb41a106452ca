"""The state of one answer: its tokens, its text, its times, and why it ends.

Every way to ask, streamed, batched or in a conversation, puts the decoder's logits in here.
"""

import json
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from fastvlm_onnx.runtime.answering.results import FinishReason, Generation, Piece, Timings
from fastvlm_onnx.runtime.arrays import FloatArray
from fastvlm_onnx.runtime.engine.constraint import TokenConstraint
from fastvlm_onnx.runtime.engine.options import GenerationConfig
from fastvlm_onnx.runtime.engine.sampling import Sampler
from fastvlm_onnx.runtime.text.text_stream import AnswerText
from fastvlm_onnx.runtime.text.tokenizer import TextTokenizer


@dataclass(frozen=True)
class ModelDescription:
    """The facts about an open model that every answer repeats.

    Attributes:
        name: the package's name.
        precision: the variant.
        providers: ONNX Runtime's name of the provider of each graph.
        load_seconds: time that opening the package took.
    """

    name: str
    precision: str
    providers: dict[str, str]
    load_seconds: float


@dataclass(frozen=True)
class StageTimes:
    """The time before the prefill.

    Attributes:
        called: moment of the call, on time.perf_counter's clock.
        preprocess: seconds from images to pixel_values.
        vision: seconds from pixel_values to image features.
        prefill_began: moment at which the prefill began, or is about to.
    """

    called: float
    preprocess: float
    vision: float
    prefill_began: float


class Answer:
    """One answer as far as it has come.

    Attributes:
        token_ids: the tokens so far, without the end token.
        finish_reason: why the answer has ended; None while it goes on.
        error: ended the answer in place of a finish_reason; None as a rule.
        cached_tokens: positions of the prompt whose keys and values were there before.
        is_greedy: `accept` reads nothing but the largest logit.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        config: GenerationConfig,
        eos_token_ids: Collection[int],
        max_new_tokens: int,
        times: StageTimes,
        constraint: TokenConstraint | None = None,
    ) -> None:
        """Begin an answer.

        Args:
            max_new_tokens: as many as the options ask for and the context has room for.
            constraint: the constraint of this answer alone; None for an answer in free text.
        """
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.error: Exception | None = None
        self.cached_tokens = 0
        self.is_greedy = config.is_greedy
        self._config, self._max_new_tokens, self._times = config, max_new_tokens, times
        self._eos_token_ids = () if config.ignore_eos else tuple(eos_token_ids)
        self._constraint = constraint
        self._sample = Sampler(config, constraint)
        # A structured answer keeps the white space that its expression or choice has at the ends.
        self._text = AnswerText(tokenizer, config.stop, strip=constraint is None)
        self._unread, self._taken = "", 0
        self._samples = 0
        self._prefilled = self._first_token = self._ended = 0.0

    def accept(self, logits: FloatArray) -> int | None:
        """Sample the next token and decide whether the answer goes on.

        Args:
            logits: float32 [vocab_size]. Of a greedy answer, only the largest is read.

        Returns:
            The token to run next; None where the answer has ended.

        Raises:
            InputError: the answer's constraint takes more work than its limits allow.
        """
        if not self._samples:
            self._prefilled = time.perf_counter()
        token_id = self._sample(logits)
        self._ended = time.perf_counter()
        if not self._samples:
            self._first_token = self._ended
        self._samples += 1
        if token_id in self._eos_token_ids:
            self._finish("stop")
            return None
        self.token_ids.append(token_id)
        if self._config.on_token:
            self._config.on_token(token_id)
        self._unread += self._text.add(token_id)
        is_complete = self._constraint is not None and self._constraint.is_complete
        if self._text.has_stopped or is_complete:
            self._finish("stop")
        elif self._is_over_time():
            self._finish("time")
        elif len(self.token_ids) == self._max_new_tokens:
            self._finish("length")
        return token_id if self.finish_reason is None else None

    def accept_or_fail(self, logits: FloatArray) -> None:
        """`accept` for an answer among others: an exception becomes the answer's own error."""
        try:
            self.accept(logits)
        except Exception as error:
            self.error = error

    @property
    def has_ended(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    @property
    def has_text(self) -> bool:
        """Text came since the last piece; text that may yet change is held back."""
        return bool(self._unread)

    def take_piece(self, generation: Generation | None = None) -> Piece:
        """The text and the tokens that came since the last piece.

        Args:
            generation: the whole answer, for the last piece.
        """
        new = slice(self._taken, len(self.token_ids))
        text, self._unread, self._taken = self._unread, "", new.stop
        logprobs, top_logprobs = self._sample.logprobs, self._sample.top_logprobs
        return Piece(
            text,
            generation,
            self.token_ids[new],
            None if logprobs is None else logprobs[new],
            None if top_logprobs is None else top_logprobs[new],
        )

    def end(self, reason: FinishReason) -> None:
        """End the answer for a reason that lies outside it."""
        if self.finish_reason is None:
            self._finish(reason)

    def result(self, model: ModelDescription, prompt_tokens: int) -> Generation:
        """The record of an answer that has ended.

        Args:
            prompt_tokens: positions before the answer.

        Raises:
            Exception: the error that ended the answer.
        """
        if self.error is not None:
            raise self.error
        assert self.finish_reason is not None
        times = self._times
        begun = self._samples > 0
        decode = self._ended - self._first_token if begun else 0.0
        runs = self._samples - 1
        waiting = times.prefill_began - times.called - times.preprocess - times.vision
        logprobs, top_logprobs = self._sample.logprobs, self._sample.top_logprobs
        # An end token is sampled too, and is no token of the answer.
        answered = slice(len(self.token_ids))
        return Generation(
            text=self._text.text,
            token_ids=list(self.token_ids),
            finish_reason=self.finish_reason,
            prompt_tokens=prompt_tokens,
            timings=Timings(
                load=model.load_seconds,
                preprocess=times.preprocess,
                vision=times.vision,
                prefill=self._prefilled - times.prefill_began if begun else 0.0,
                first_token=self._first_token - times.called if begun else 0.0,
                decode=decode,
                tokens_per_second=runs / decode if runs > 0 and decode > 0 else 0.0,
                waiting=max(0.0, waiting),
            ),
            model=model.name,
            precision=model.precision,
            providers=dict(model.providers),
            logprobs=None if logprobs is None else logprobs[answered],
            top_logprobs=None if top_logprobs is None else top_logprobs[answered],
            parsed=None if self._config.schema is None else _parsed(self._text.text),
            cached_tokens=self.cached_tokens,
        )

    def _is_over_time(self) -> bool:
        limit = self._config.max_time
        return limit is not None and self._ended - self._times.called >= limit

    def _finish(self, reason: FinishReason) -> None:
        self.finish_reason = reason
        self._unread += self._text.finish()
        self._ended = time.perf_counter()


def _parsed(text: str) -> Any:
    """The value of an answer in JSON; None for an answer that was cut."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
