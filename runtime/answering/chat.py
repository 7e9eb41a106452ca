"""A conversation: turns keep their keys and values, so a question costs its own tokens."""

import time
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Unpack

import numpy as np
from numpy.typing import NDArray

from fastvlm_onnx.errors import InputError, PromptTooLongError
from fastvlm_onnx.package import PromptFormat
from fastvlm_onnx.runtime.answering.results import Generation, Piece
from fastvlm_onnx.runtime.answering.stream import Marks, answer, last_of
from fastvlm_onnx.runtime.engine.kv_cache import KVCache
from fastvlm_onnx.runtime.engine.options import Options, Settings
from fastvlm_onnx.runtime.text.prompt import check_prompt
from fastvlm_onnx.runtime.text.tokenizer import TextTokenizer
from fastvlm_onnx.runtime.vision.image import Picture

if TYPE_CHECKING:
    from fastvlm_onnx.runtime.model import FastVLM

FloatArray = NDArray[np.float32]
TURN = "<|im_start|>"


class TurnIds:
    """Token ids of what stands around the words of a conversation.

    Source: the chat template of Qwen2, as predict.py fills it for one question.
    """

    def __init__(self, tokenizer: TextTokenizer, template: PromptFormat) -> None:
        """Take the template for one question apart.

        Raises:
            InputError: it has no turns.
        """
        before, after = template.before_image, template.after_prompt
        if TURN not in before or TURN not in after:
            raise InputError(f"the package's prompt template has no {TURN}: it cannot converse.")
        user = before.rindex(TURN)
        self._tokenizer, self._before_prompt = tokenizer, template.before_prompt
        self.system = tokenizer.encode_template(before[:user])
        self._user = tokenizer.encode_template(before[user:])
        self._assistant = tokenizer.encode_template(after)
        # What stands behind an answer.
        self.end = tokenizer.encode_template(after[: after.rindex(TURN)])

    def question(self, words: str, features: FloatArray | None) -> list[list[int] | FloatArray]:
        """A user's turn, up to where the answer begins: ids, and rows of the picture."""
        if features is None:
            return [self._user + self._tokenizer.encode(words) + self._assistant]
        asked = self._tokenizer.encode(self._before_prompt + words)
        return [self._user, features[0], asked + self._assistant]


@dataclass(frozen=True)
class Turn:
    """A question and its answer.

    Attributes:
        prompt: the user's words.
        has_image: a picture came with them.
        token_ids: the answer's, as far as it came.
    """

    prompt: str
    has_image: bool
    token_ids: list[int]
    pieces: list[list[int] | FloatArray] = field(repr=False, compare=False)


class Chat:
    """A conversation with a model; made by `FastVLM.chat`. For one thread at a time.

    Attributes:
        turns: what was said, the oldest first; those that were dropped are gone.
    """

    def __init__(self, model: "FastVLM", *, drop_oldest: bool) -> None:
        self._model, self._drop_oldest = model, drop_oldest
        self._ids = TurnIds(model._tokenizer, model.manifest.prompt)
        self._context = model.manifest.decoder.context_length
        self._is_closed = False
        self._running: Generator[Piece, None, None] | None = None
        self.reset()

    def reset(self) -> None:
        """Forget what was said."""
        self._stop()
        self.turns: list[Turn] = []
        # Room for the whole context, of which only what is filled takes memory.
        self._cache: KVCache | None = None
        self._behind: list[int] = []

    def close(self) -> None:
        """Let go of keys and values; the chat answers no more."""
        self.reset()
        self._is_closed = True

    def __enter__(self) -> "Chat":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(
        self,
        text: str,
        image: Picture | FloatArray | None = None,
        **options: Unpack[Options],
    ) -> Generation:
        """Ask the next question.

        Args:
            text: the user's words.
            image: a picture that comes with them, as `FastVLM.generate` takes it; earlier ones stay
                where they were given.
            options: see `Options`.

        Raises:
            InputError: the words, the picture or an option cannot be used; the chat or its model is
                closed.
            PromptTooLongError: the context is full, and the oldest turn is not to be dropped, or
                the question is too long by itself. The chat stays as it was.
            ProviderError: a provider failed; the chat stays as it was.
        """
        return last_of(self.stream(text, image, **options))

    def stream(
        self,
        text: str,
        image: Picture | FloatArray | None = None,
        **options: Unpack[Options],
    ) -> Generator[Piece, None, None]:
        """`ask`, piece by piece. Closed early, the answer so far is part of the conversation."""
        began = time.perf_counter()
        if self._is_closed:
            raise InputError("the chat is closed; begin another with model.chat().")
        self._model._check_usable()
        self._stop()
        settings = Settings(**options)
        check_prompt(text)
        prepared = None if image is None else self._model.prepare(image, settings.orient)
        self._check_room(text, has_image=image is not None)
        self._running = self._answer(text, prepared, settings, began)
        return self._running

    def _stop(self) -> None:
        """End an answer that nobody waits for any more."""
        running, self._running = self._running, None
        if running is not None:
            running.close()

    def _answer(
        self, text: str, prepared: FloatArray | None, settings: Settings, began: float
    ) -> Generator[Piece, None, None]:
        model = self._model
        model._check_usable()  # it may have been closed since the call
        preprocessed = time.perf_counter()
        features = None if prepared is None else model.features_of(prepared, is_cached=True)
        marks = Marks(began, preprocessed, time.perf_counter())
        question = self._ids.question(text, features)

        # 1. What the cache lacks: this question, or everything where turns were dropped.
        # An answer as long as the context would leave no turn: a quarter is kept for it at most.
        longest = self._context // 4
        wanted = min(settings.max_new_tokens, longest) if self._drop_oldest else 1
        turns = list(self.turns)
        while turns and self._room(turns, question) < wanted:
            if not self._drop_oldest:
                break
            del turns[0]
        cache, lacking = self._cache, [*self._behind_last(), *question]
        if cache is None or len(turns) < len(self.turns):
            cache = model._decoder.new_cache(self._context)
            lacking = [self._ids.system]
            for turn in turns:
                lacking += [*turn.pieces, turn.token_ids, self._ids.end]
            lacking += question
        inputs_embeds = np.concatenate(
            [model._embed_tokens(p) if isinstance(p, list) else p for p in lacking]
        )[None]

        # 2. The answer; whatever ends it, the cache and the turns agree.
        filled = cache.length
        prompt_end = filled + inputs_embeds.shape[1]
        room = self._context - prompt_end
        token_ids: list[int] = []
        try:
            max_new_tokens = min(settings.max_new_tokens, room)
            yield from answer(
                model, inputs_embeds, cache, settings, max_new_tokens, marks, token_ids
            )
        finally:
            if cache.length < prompt_end:  # nothing was said
                cache.length = filled
            else:
                self.turns = [*turns, Turn(text, features is not None, token_ids, question)]
                # A token that was drawn and not yet run stands behind the cache's last.
                self._cache = cache
                self._behind = token_ids[cache.length - prompt_end :]

    def _behind_last(self) -> list[list[int]]:
        """What stands between the cache's end and the next question."""
        return [self._behind, self._ids.end] if self.turns else []

    def _room(self, turns: list[Turn], question: list[list[int] | FloatArray]) -> int:
        """Positions left for an answer behind these turns and this question."""
        said = sum(
            sum(map(len, turn.pieces)) + len(turn.token_ids) + len(self._ids.end) for turn in turns
        )
        return self._context - len(self._ids.system) - said - sum(map(len, question))

    def _check_room(self, text: str, *, has_image: bool) -> None:
        """Raise PromptTooLongError where no answer can follow."""
        model = self._model
        width = model.manifest.decoder.hidden_size
        image = np.empty((1, model.num_image_tokens, width), np.float32) if has_image else None
        question = self._ids.question(text, image)
        room = self._room([] if self._drop_oldest else self.turns, question)
        if room < 1:
            asked = sum(map(len, question))
            raise PromptTooLongError(
                f"the question has {asked} tokens, and the context of {self._context} has room for "
                f"{max(0, room + asked - 1)} of them; ask a shorter one"
                + (
                    "."
                    if self._drop_oldest or not self.turns
                    else ", begin another chat, or make it with chat(drop_oldest=True)."
                )
            )
