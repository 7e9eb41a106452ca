"""Several questions at once: prefilled one by one, decoded together."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastvlm_onnx.errors import InputError
from fastvlm_onnx.runtime.answering.results import Generation, Timings
from fastvlm_onnx.runtime.answering.stream import generation_of, rate, why_ended
from fastvlm_onnx.runtime.engine.decoding import FinishReason, prefill
from fastvlm_onnx.runtime.engine.options import Settings
from fastvlm_onnx.runtime.engine.sampling import Sampler
from fastvlm_onnx.runtime.text.prompt import PromptIds, room_for_answer, tokenize_prompt
from fastvlm_onnx.runtime.text.text_stream import AnswerText
from fastvlm_onnx.runtime.vision.image import Picture

if TYPE_CHECKING:
    from fastvlm_onnx.runtime.model import FastVLM

FloatArray = NDArray[np.float32]


@dataclass
class Row:
    """One answer of the batch, as far as it has come; seconds since the call."""

    prompt_ids: PromptIds
    prompt_tokens: int
    max_new_tokens: int
    sample: Sampler
    text: AnswerText
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    preprocess: float = 0.0
    vision: float = 0.0
    prefill: float = 0.0
    first_token: float = 0.0
    ended: float = 0.0

    def take(
        self, logits: FloatArray, began: float, settings: Settings, eos: Sequence[int]
    ) -> None:
        """Draw the next token, and see whether it is the last."""
        token_id = self.sample(logits)
        self.ended = time.perf_counter() - began
        if not self.token_ids:
            self.first_token = self.ended
        if token_id in eos:
            self.finish_reason = "stop"
            return
        self.token_ids.append(token_id)
        self.text.add(token_id)
        self.finish_reason = why_ended(self.text, settings, self.ended)
        if self.finish_reason is None and len(self.token_ids) == self.max_new_tokens:
            self.finish_reason = "length"


def answer_batch(
    model: "FastVLM",
    pictures: Sequence[Picture | FloatArray],
    prompts: str | Sequence[str],
    settings: Settings,
) -> list[Generation]:
    """See `FastVLM.generate_batch`."""
    began = time.perf_counter()
    asked = _check(pictures, prompts, settings)
    rows = [_new_row(model, prompt, settings) for prompt in asked]
    decoder, eos = model._decoder, model.manifest.decoder.eos_token_ids
    embed_tokens = model._embed_tokens

    # 1. Each prompt by itself, into its row: computing is what it takes, and sharing saves none.
    batch = decoder.new_batch(
        len(rows), max(row.prompt_tokens + row.max_new_tokens for row in rows)
    )
    for number, (row, picture) in enumerate(zip(rows, pictures, strict=True)):
        marks = [time.perf_counter()]
        prepared = model.prepare(picture, settings.orient)
        marks.append(time.perf_counter())
        features = model.features_of(prepared, is_cached=True)
        marks.append(time.perf_counter())
        logits = prefill(decoder, model.embed_prompt(row.prompt_ids, features), batch.row(number))
        marks.append(time.perf_counter())
        row.preprocess, row.vision, row.prefill = np.diff(marks).tolist()
        row.take(logits, began, settings, eos)
        batch.lengths[number] = row.prompt_tokens

    # 2. One token of each at a time: the weights are read once for all. Who is done leaves.
    going = rows
    while True:
        left = [number for number, row in enumerate(going) if row.finish_reason is None]
        if not left:
            break
        if len(left) < len(going):
            batch.keep(left)
            going = [going[number] for number in left]
        embeds = embed_tokens([row.token_ids[-1] for row in going])[:, None]
        for row, logits in zip(going, decoder.run_batch(embeds, batch), strict=True):
            row.take(logits, began, settings, eos)
    return [_finish(model, row) for row in rows]


def _check(
    pictures: Sequence[Picture | FloatArray], prompts: str | Sequence[str], settings: Settings
) -> list[str]:
    """A prompt for each picture."""
    if isinstance(pictures, str | bytes) or not isinstance(pictures, Sequence):
        raise InputError(f"pictures are a {type(pictures).__name__}; expected a list of pictures.")
    if not pictures:
        raise InputError("the list of pictures is empty; expected at least one.")
    asked = [prompts] * len(pictures) if isinstance(prompts, str) else list(prompts)
    if len(asked) != len(pictures):
        raise InputError(
            f"found {len(pictures)} pictures and {len(asked)} prompts; expected one prompt for "
            "each picture, or one for all."
        )
    if settings.on_token:
        raise InputError("on_token is for one answer at a time; leave it out of a batch.")
    return asked


def _new_row(model: "FastVLM", prompt: str, settings: Settings) -> Row:
    prompt_ids = tokenize_prompt(model._tokenizer, model.manifest.prompt, prompt)
    context = model.manifest.decoder.context_length
    room = room_for_answer(context, len(prompt_ids), model.num_image_tokens)
    return Row(
        prompt_ids=prompt_ids,
        prompt_tokens=len(prompt_ids) + model.num_image_tokens,
        max_new_tokens=min(settings.max_new_tokens, room),
        sample=Sampler(settings),
        text=AnswerText(model._tokenizer, settings.stop),
    )


def _finish(model: "FastVLM", row: Row) -> Generation:
    assert row.finish_reason is not None
    row.text.finish()
    decode = row.ended - row.first_token
    runs = len(row.token_ids) - (row.finish_reason == "length")
    return generation_of(
        model,
        row.text,
        row.token_ids,
        row.finish_reason,
        row.prompt_tokens,
        Timings(
            load=model.load_seconds,
            preprocess=row.preprocess,
            vision=row.vision,
            prefill=row.prefill,
            first_token=row.first_token,
            decode=decode,
            tokens_per_second=rate(runs, decode),
        ),
        row.sample.logprobs,
    )
