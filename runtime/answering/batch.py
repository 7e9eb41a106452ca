"""Several answers at once: prompts are prefilled one by one, answers are decoded together."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from fastvlm_onnx.errors import InputError
from fastvlm_onnx.runtime.answering.answer import Answer, StageTimes
from fastvlm_onnx.runtime.answering.components import Components
from fastvlm_onnx.runtime.answering.prefill import Prefill
from fastvlm_onnx.runtime.answering.results import Generation
from fastvlm_onnx.runtime.arrays import FloatArray
from fastvlm_onnx.runtime.engine.language_model import LanguageModel
from fastvlm_onnx.runtime.engine.options import GenerationConfig
from fastvlm_onnx.runtime.engine.prefix_cache import PrefixCache, PromptKey
from fastvlm_onnx.runtime.text.prompt import (
    PromptPart,
    num_positions,
    question,
    room_for_answer,
)
from fastvlm_onnx.runtime.vision.image_encoder import ImageInput


class RunningBatch:
    """Answers that are decoded together. A row joins, and a row leaves, between two steps.

    For one thread at a time.

    Attributes:
        answers: the answers that go on, in the order in which they joined.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        rows: int = 0,
        capacity: int = 0,
        prefixes: PrefixCache | None = None,
    ) -> None:
        """Begin an empty batch.

        Args:
            rows: rows to reserve memory for; more may join.
            capacity: positions of a row to reserve memory for; longer rows may join.
            prefixes: keys and values of earlier prompts, which joining prompts with a key start
                from, and add to; None for a batch that keeps none.
        """
        self._model, self._batch = model, model.new_batch(rows, capacity)
        self._prefixes = prefixes
        self._keys: list[PromptKey] = []
        self.answers: list[Answer] = []

    def join(
        self,
        inputs_embeds: FloatArray,
        answer: Answer,
        max_new_tokens: int,
        key: PromptKey = (),
    ) -> None:
        """Prefill a prompt and sample its answer's first token.

        Prefill is compute-bound, so batching it saves nothing. An answer that ends with its first
        token takes no row.

        Args:
            inputs_embeds: float32 [1, sequence_length, hidden_size].
            max_new_tokens: the largest number of tokens that the answer may get.
            key: the prompt's key in the prefix cache; empty for a prompt that does not use it.

        Raises:
            ProviderError: there is not enough memory, or the provider failed.
        """
        prefill = self.begin(inputs_embeds, answer, max_new_tokens, key)
        prefill.advance()
        self.admit(prefill)

    def begin(
        self,
        inputs_embeds: FloatArray,
        answer: Answer,
        max_new_tokens: int,
        key: PromptKey = (),
    ) -> Prefill:
        """Begin to `join` in parts: `advance` the prefill to its end, and `admit` it.

        Rows may join, be decoded and leave between two parts.
        """
        return Prefill(self._model, inputs_embeds, answer, max_new_tokens, key, self._prefixes)

    def admit(self, prefill: Prefill) -> None:
        """Give a prefilled prompt's answer a row, unless the answer has ended.

        Raises:
            ProviderError: there is not enough memory.
        """
        if not prefill.answer.has_ended:
            row = self._batch.new_row(prefill.positions)
            row.append(prefill.cache.read(0, prefill.cache.length))
            self._batch.admit(row)
            self._keys.append(prefill.key)
            self.answers.append(prefill.answer)

    def step(self) -> list[Answer]:
        """Decode one token of every answer.

        Returns:
            The answers that ended, by an error of their own too; their rows are gone.

        Raises:
            ProviderError: the provider failed. All rows are as they were.
        """
        tokens = [answer.token_ids[-1] for answer in self.answers]
        is_greedy = [answer.is_greedy for answer in self.answers]
        rows = self._model.decode_one_batch_step(tokens, self._batch, is_greedy)
        for answer, logits in zip(self.answers, rows, strict=True):
            answer.accept_or_fail(logits)
        return self._drop({i for i, answer in enumerate(self.answers) if answer.has_ended})

    def leave(self, answer: Answer) -> None:
        """Drop an answer before its end."""
        self._drop({self.answers.index(answer)})

    def _drop(self, rows: set[int]) -> list[Answer]:
        dropped = [self.answers[row] for row in sorted(rows)]
        if rows:
            for row in rows:
                self._remember(row)
            kept = [row for row in range(len(self.answers)) if row not in rows]
            self._batch.keep(kept)
            self.answers = [self.answers[row] for row in kept]
            self._keys = [self._keys[row] for row in kept]
        return dropped

    def _remember(self, row: int) -> None:
        """Keep a row's keys and values for prompts that continue its conversation."""
        key = self._keys[row]
        if self._prefixes is not None and key:
            filled = [*key, *self.answers[row].token_ids][: self._batch.lengths[row]]
            self._prefixes.add(filled, partial(self._batch.read, row))


@dataclass(frozen=True)
class Request:
    """A question with the room that its answer has."""

    parts: list[PromptPart]
    prompt_tokens: int
    max_new_tokens: int


def answer_batch(
    components: Components,
    images: Sequence[ImageInput],
    prompts: str | Sequence[str],
    config: GenerationConfig,
) -> list[Generation]:
    """See `FastVLM.generate_batch`."""
    called = time.perf_counter()
    asked = _prompts_for(images, prompts, config)
    components.constraints.check(config)
    requests = [_request(components, prompt, config) for prompt in asked]
    encoder = components.image_encoder

    # 1. Each prompt by itself, into a row of its own.
    batch = RunningBatch(
        components.language_model,
        rows=len(requests),
        capacity=max(request.prompt_tokens + request.max_new_tokens for request in requests),
    )
    answers = []
    for request, image in zip(requests, images, strict=True):
        started = time.perf_counter()
        read = encoder.read(image, orient=config.orient)
        preprocessed = time.perf_counter()
        features = encoder.encode(read)
        encoded = time.perf_counter()
        times = StageTimes(called, preprocessed - started, encoded - preprocessed, encoded)
        answer = components.begin_answer(config, request.max_new_tokens, times)
        batch.join(components.embed(request.parts, [features]), answer, request.max_new_tokens)
        answers.append(answer)

    # 2. One token of every answer at a time: the weights are read once for all rows.
    while batch.answers:
        batch.step()
    return [
        answer.result(components.describe(), request.prompt_tokens)
        for answer, request in zip(answers, requests, strict=True)
    ]


def _prompts_for(
    images: Sequence[ImageInput], prompts: str | Sequence[str], config: GenerationConfig
) -> list[str]:
    """A prompt for each image."""
    if isinstance(images, str | bytes) or not isinstance(images, Sequence):
        raise InputError(f"images are a {type(images).__name__}; expected a list of images.")
    if not images:
        raise InputError("the list of images is empty; expected at least one.")
    asked = [prompts] * len(images) if isinstance(prompts, str) else list(prompts)
    if len(asked) != len(images):
        raise InputError(
            f"found {len(images)} images and {len(asked)} prompts; expected one prompt for "
            "each image, or one for all."
        )
    if config.on_token:
        raise InputError("on_token is for one answer at a time; leave it out of a batch.")
    return asked


def _request(components: Components, prompt: str, config: GenerationConfig) -> Request:
    parts = components.template.prompt(question(prompt, num_images=1))
    num_image_tokens = components.image_encoder.num_image_tokens
    context = components.language_model.sizes.context_length
    room = room_for_answer(context, parts, num_image_tokens)
    return Request(parts, num_positions(parts, num_image_tokens), min(config.max_new_tokens, room))
