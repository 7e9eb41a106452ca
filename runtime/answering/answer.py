"""The state of one answer: its tokens, its text, its times, and why it ends.

Every way to ask, streamed, batched or in a conversation, puts the decoder's logits in here.
"""

import json
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from fastvlm_onnx.runtime.answering.results import FinishReason, Generation, Timings
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
    """Moments on time.perf_counter's clock, before the prefill.

    Attributes:
        called: the caller asked.
        started: work on this answer's image began.
        preprocessed: pixel_values were there.
        encoded: image features were there; the prefill begins.
    """

    called: float
    started: float
    preprocessed: float
    encoded: float


class Answer:
    """One answer as far as it has come.

    Attributes:
        token_ids: the tokens so far, without the end token.
        finish_reason: why the answer has ended; None while it goes on.
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
        self._config, self._max_new_tokens, self._times = config, max_new_tokens, times
        self._eos_token_ids = () if config.ignore_eos else tuple(eos_token_ids)
        self._constraint = constraint
        self._sample = Sampler(config, constraint)
        # A structured answer keeps the white space that its expression or choice has at the ends.
        self._text = AnswerText(tokenizer, config.stop, strip=constraint is None)
        self._unread = ""
        self._samples = 0
        self._prefilled = self._first_token = self._ended = 0.0

    def accept(self, logits: FloatArray) -> int | None:
        """Sample the next token and decide whether the answer goes on.

        Args:
            logits: float32 [vocab_size].

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

    def take_text(self) -> str:
        """The text that came since the last call; text that may yet change is held back."""
        text, self._unread = self._unread, ""
        return text

    def result(self, model: ModelDescription, prompt_tokens: int) -> Generation:
        """The record of an answer that has ended.

        Args:
            prompt_tokens: positions before the answer.
        """
        assert self.finish_reason is not None
        times = self._times
        decode = self._ended - self._first_token
        runs = self._samples - 1
        logprobs = self._sample.logprobs
        return Generation(
            text=self._text.text,
            token_ids=list(self.token_ids),
            finish_reason=self.finish_reason,
            prompt_tokens=prompt_tokens,
            timings=Timings(
                load=model.load_seconds,
                preprocess=times.preprocessed - times.started,
                vision=times.encoded - times.preprocessed,
                prefill=self._prefilled - times.encoded,
                first_token=self._first_token - times.called,
                decode=decode,
                tokens_per_second=runs / decode if runs and decode > 0 else 0.0,
            ),
            model=model.name,
            precision=model.precision,
            providers=dict(model.providers),
            # An end token is sampled too, and is no token of the answer.
            logprobs=None if logprobs is None else logprobs[: len(self.token_ids)],
            parsed=None if self._config.schema is None else _parsed(self._text.text),
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
