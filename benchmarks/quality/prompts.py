"""The prompts of prompts.json, and their tokens in a package's template."""

import json
from dataclasses import dataclass
from pathlib import Path

from fastvlm_onnx import FastVLM, InputError
from fastvlm_onnx.runtime.text.prompt import ImagePlace, question

PROMPTS = Path(__file__).with_name("prompts.json")


@dataclass(frozen=True)
class Prompt:
    """A prompt, or a conversation up to its last question.

    Attributes:
        id: language, kind and number.
        language: two letters.
        kind: question, image, conversation, code, list, json, table or long.
        turns: texts of the user and of the assistant in turn; the user's text is first and last.
        image: a text whose token embeddings stand where image features would; None without image.
    """

    id: str
    language: str
    kind: str
    turns: list[str]
    image: str | None = None


def read_prompts(count: int | None = None) -> list[Prompt]:
    """Read all prompts, or `count` of them that are spread evenly over kinds and languages.

    Raises:
        InputError: there are fewer prompts.
    """
    prompts = [Prompt(**fields) for fields in json.loads(PROMPTS.read_text("utf-8"))]
    if count is None:
        return prompts
    if not 1 <= count <= len(prompts):
        raise InputError(f"{count} prompts were asked for; expected 1 to {len(prompts)}.")
    return [prompts[i * len(prompts) // count] for i in range(count)]


def tokenize(model: FastVLM, prompt: Prompt) -> tuple[list[int], list[int], list[int]]:
    """Return the token ids before the image, in its place, and after it.

    A prompt without image has all its token ids after the image.
    """
    template = model.template
    first, *others = prompt.turns
    parts = template.prompt(question(first, num_images=0 if prompt.image is None else 1))
    if ImagePlace(0) in parts:
        before, _, after = parts
        return before, template.tokenizer.encode(prompt.image), after
    (ids,) = parts
    for answer, asked in zip(others[::2], others[1::2], strict=True):
        (turn,) = template.user_turn(question(asked, num_images=0))
        ids = ids + template.tokenizer.encode(answer) + template.end_of_turn() + turn
    return [], [], ids
