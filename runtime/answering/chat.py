"""A conversation: turns keep their keys and values, so a question costs its own tokens."""

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Unpack

from fastvlm_onnx.deprecation import renamed
from fastvlm_onnx.errors import InputError, PromptTooLongError
from fastvlm_onnx.runtime.answering.answer import StageTimes
from fastvlm_onnx.runtime.answering.components import Components
from fastvlm_onnx.runtime.answering.results import Generation, Piece
from fastvlm_onnx.runtime.answering.see import start_from_seen
from fastvlm_onnx.runtime.answering.stream import final_generation, stream_answer
from fastvlm_onnx.runtime.engine.kv_cache import KVCache
from fastvlm_onnx.runtime.engine.language_model import LanguageModel, PromptPart
from fastvlm_onnx.runtime.engine.options import GenerationConfig, GenerationOptions
from fastvlm_onnx.runtime.text.prompt import ImagePlace, PromptTemplate, num_positions, question
from fastvlm_onnx.runtime.vision.image_encoder import (
    ImageFeatures,
    ImageInput,
    PixelValues,
    images_of,
)


@dataclass(frozen=True)
class Turn:
    """A question and its answer.

    Attributes:
        prompt: the user's text.
        has_image: an image came with the text.
        token_ids: the answer's tokens, as far as it came.
        parts: the question as the decoder gets it: token ids, and rows of image features.
    """

    prompt: str
    has_image: bool
    token_ids: list[int]
    parts: list[PromptPart] = field(repr=False, compare=False)


@dataclass
class Draft:
    """A turn that is being answered.

    Attributes:
        turns: the earlier turns that the cache holds or `uncached` repeats.
        cache: the cache that the answer is decoded in.
        uncached: the parts that the cache lacks; the question comes last.
        question: the parts of the question.
        filled: positions that the cache held before the draft.
    """

    turns: list[Turn]
    cache: KVCache
    uncached: list[PromptPart]
    question: list[PromptPart]
    filled: int = field(init=False)

    def __post_init__(self) -> None:
        self.filled = self.cache.length


class Transcript:
    """The turns of a conversation and the cache that holds them.

    Attributes:
        turns: the oldest first.
        cache: keys and values of the turns; None before the first.
        pending_token_ids: tokens of the last answer that are not in the cache yet. The last
            sampled token is never run; the next prompt starts with it.
    """

    def __init__(self, template: PromptTemplate, context_length: int) -> None:
        self.turns: list[Turn] = []
        self.cache: KVCache | None = None
        self.pending_token_ids: list[int] = []
        self._context_length = context_length
        self._system, self._end_of_turn = template.system(), template.end_of_turn()

    def begin(
        self, model: LanguageModel, question: list[PromptPart], room_wanted: int, *, drop: bool
    ) -> Draft:
        """Begin a turn.

        Args:
            room_wanted: positions to leave for the answer.
            drop: drop the oldest turns where they leave less room.
        """
        turns = list(self.turns)
        while drop and turns and self.room(turns, _positions(question)) < room_wanted:
            del turns[0]
        if self.cache is not None and len(turns) == len(self.turns):
            before = [self.pending_token_ids, self._end_of_turn] if turns else []
            return Draft(turns, self.cache, [*before, *question], question)
        # The cache starts with turns that are dropped, so all that is left is prefilled again.
        # It has room for the whole context, of which only filled positions take memory.
        return Draft(
            turns,
            model.new_cache(self._context_length),
            [*self.parts(turns), *question],
            question,
        )

    def commit(self, draft: Draft, turn: Turn, prompt_end: int) -> None:
        """Take an answered turn into the conversation, as far as its answer came.

        Args:
            prompt_end: positions of the cache after the question.
        """
        self.turns = [*draft.turns, turn]
        self.cache = draft.cache
        self.pending_token_ids = turn.token_ids[draft.cache.length - prompt_end :]

    def rollback(self, draft: Draft) -> None:
        """Forget a turn whose question was not run to its end."""
        draft.cache.truncate(draft.filled)

    def parts(self, turns: Sequence[Turn]) -> list[PromptPart]:
        """The system text and these turns as the decoder gets them."""
        parts: list[PromptPart] = [self._system]
        for turn in turns:
            parts += [*turn.parts, turn.token_ids, self._end_of_turn]
        return parts

    def room(self, turns: Sequence[Turn], question_positions: int) -> int:
        """Positions that these turns and a question leave for an answer."""
        return self._context_length - _positions(self.parts(turns)) - question_positions


def _positions(parts: Sequence[PromptPart]) -> int:
    return sum(map(len, parts))


class Chat:
    """A conversation with a model; made by `FastVLM.chat`. For one thread at a time."""

    def __init__(self, components: Callable[[], Components], *, drop_oldest: bool) -> None:
        """Begin a conversation.

        Args:
            components: returns the open model's parts, or raises InputError where it is closed.

        Raises:
            InputError: the package's template has no turns.
        """
        template = components().template
        if not template.text.end_of_turn:
            raise InputError("the package's prompt template has no turns: it cannot converse.")
        self._components, self._drop_oldest = components, drop_oldest
        self._is_closed = False
        self._running: Generator[Piece, None, None] | None = None
        self.transcript = self._new_transcript()

    @property
    def turns(self) -> list[Turn]:
        """The turns so far, the oldest first, without turns that were dropped."""
        return self.transcript.turns

    def reset(self) -> None:
        """Forget all turns."""
        self._stop()
        self.transcript = self._new_transcript()

    def close(self) -> None:
        """Release keys and values. A closed chat answers no more."""
        self._stop()
        self.transcript.turns, self.transcript.cache = [], None
        self._is_closed = True

    def __enter__(self) -> "Chat":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @renamed(text="prompt")
    def ask(
        self,
        prompt: str,
        image: ImageInput | Sequence[ImageInput] | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Generation:
        """Ask the next question.

        Args:
            prompt: the user's text.
            image: an image, or several, that come with the text. Earlier images stay in their
                turns.
            options: see `GenerationOptions`.

        Raises:
            InputError: the prompt, an image or an option cannot be used; or the chat or its model
                is closed.
            PromptTooLongError: the question does not fit in the context; the chat stays as it was.
            ProviderError: a provider failed; the chat stays as it was.
        """
        return final_generation(self.stream(prompt, image, **options))

    @renamed(text="prompt")
    def stream(
        self,
        prompt: str,
        image: ImageInput | Sequence[ImageInput] | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Generator[Piece, None, None]:
        """`ask`, piece by piece.

        Closed early, the answer so far is part of the conversation.
        """
        called = time.perf_counter()
        if self._is_closed:
            raise InputError("the chat is closed; begin another with model.chat().")
        components = self._components()
        self._stop()
        config = GenerationConfig(**options)
        components.constraints.check(config)
        images = images_of(image)
        content = question(prompt, len(images))
        encoder = components.image_encoder
        read = [encoder.read(one, orient=config.orient) for one in images]
        positions = num_positions(components.template.user_turn(content), encoder.num_image_tokens)
        self._check_room(positions)
        self._running = self._answer(prompt, content, read, config, called)
        return self._running

    def _answer(
        self,
        prompt: str,
        content: Sequence[str | ImagePlace],
        read: Sequence[PixelValues | ImageFeatures],
        config: GenerationConfig,
        called: float,
    ) -> Generator[Piece, None, None]:
        components = self._components()  # the model may have been closed since the call
        model, encoder = components.language_model, components.image_encoder
        template = components.template
        preprocessed = time.perf_counter()
        features = [encoder.encode(one) for one in read]
        encoded = time.perf_counter()
        times = StageTimes(called, preprocessed - called, encoded - preprocessed, encoded)
        asked: list[PromptPart] = [
            features[part.index].array[0] if isinstance(part, ImagePlace) else part
            for part in template.user_turn(content)
        ]

        # 1. The parts that the cache lacks. An answer as long as the context would leave no turn,
        # so at most a quarter of the context is kept for it.
        context = model.sizes.context_length
        room_wanted = min(config.max_new_tokens, context // 4)
        draft = self.transcript.begin(model, asked, room_wanted, drop=self._drop_oldest)
        inputs_embeds = model.embed(draft.uncached)
        prompt_end = draft.filled + inputs_embeds.shape[1]
        if not draft.filled and not draft.turns:
            first_turn = [template.system(), *template.user_turn(content)]
            start_from_seen(components, first_turn, features, draft.cache)
            inputs_embeds = inputs_embeds[:, draft.cache.length :]

        # 2. The answer. However it ends, the cache and the turns agree.
        max_new_tokens = min(config.max_new_tokens, context - prompt_end)
        answer = components.begin_answer(config, max_new_tokens, times)
        answer.cached_tokens = draft.cache.length
        try:
            yield from stream_answer(components, inputs_embeds, draft.cache, answer)
        finally:
            if draft.cache.length < prompt_end:
                self.transcript.rollback(draft)
            else:
                turn = Turn(prompt, bool(features), answer.token_ids, draft.question)
                self.transcript.commit(draft, turn, prompt_end)

    def _stop(self) -> None:
        """End an answer whose iterator was left before its end."""
        running, self._running = self._running, None
        if running is not None:
            running.close()

    def _new_transcript(self) -> Transcript:
        components = self._components()
        return Transcript(components.template, components.language_model.sizes.context_length)

    def _check_room(self, asked: int) -> None:
        """Raise PromptTooLongError where a question of this many positions leaves no room."""
        turns = [] if self._drop_oldest else self.turns
        room = self.transcript.room(turns, asked)
        if room < 1:
            context = self._components().language_model.sizes.context_length
            raise PromptTooLongError(
                f"the question has {asked} tokens, and the context of {context} has room for "
                f"{max(0, room + asked - 1)} of them; ask a shorter one"
                + (
                    "."
                    if self._drop_oldest or not self.turns
                    else ", begin another chat, or make it with chat(drop_oldest=True)."
                )
            )
