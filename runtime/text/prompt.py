"""Prompts: the template's and the user's text as token ids, with places for images.

A prompt is a list of parts in the order of the context. A part is a list of token ids or the place
of an image; any number of either may come in any order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fastvlm_onnx.errors import InputError, PromptTooLongError
from fastvlm_onnx.package import PromptFormat
from fastvlm_onnx.runtime.text.tokenizer import TextTokenizer


@dataclass(frozen=True)
class ImagePlace:
    """The place of an image in a prompt.

    Attributes:
        index: number of the image among those given, from 0.
    """

    index: int


PromptPart = list[int] | ImagePlace


@dataclass(frozen=True)
class PromptTemplate:
    """A package's conversation template with its tokenizer.

    The user's text is never split at special tokens: `<image>` in it adds no image, and
    `<|im_end|>` does not end the turn.

    Source: Qwen2's chat template, as Apple's predict.py fills it. Text before and after an image is
    tokenised separately, as predict.py does.
    """

    tokenizer: TextTokenizer
    text: PromptFormat

    def system(self) -> list[int]:
        """Token ids before the first turn."""
        return self.tokenizer.encode_template(self.text.system)

    def end_of_turn(self) -> list[int]:
        """Token ids after an answer, before the next turn."""
        return self.tokenizer.encode_template(self.text.end_of_turn)

    def user_turn(self, content: Sequence[str | ImagePlace]) -> list[PromptPart]:
        """A user's turn, up to the place where the answer begins.

        Args:
            content: texts and images in any number and order. The template's separator, a line
                break, follows each image.
        """
        return self._turn(self.text.user, content)

    def prompt(self, content: Sequence[str | ImagePlace]) -> list[PromptPart]:
        """A conversation of one user's turn: system text, turn, start of the answer."""
        return self._turn(self.text.before_image, content)

    def _turn(self, before: str, content: Sequence[str | ImagePlace]) -> list[PromptPart]:
        parts: list[PromptPart] = [self.tokenizer.encode_template(before)]
        pending = ""
        for item in content:
            if isinstance(item, str):
                pending += item
                continue
            parts += [self.tokenizer.encode(pending)] if pending else []
            parts.append(item)
            pending = self.text.after_image
        last = self.tokenizer.encode(pending) if pending else []
        return _joined([*parts, last + self.tokenizer.encode_template(self.text.after_prompt)])


def _joined(parts: Sequence[PromptPart]) -> list[PromptPart]:
    """The same parts, with neighbouring token ids in one list."""
    joined: list[PromptPart] = []
    for part in parts:
        if isinstance(part, list) and joined and isinstance(joined[-1], list):
            joined[-1] = joined[-1] + part
        elif part != []:
            joined.append(part)
    return joined


def question(text: str, num_images: int) -> list[str | ImagePlace]:
    """The content of a turn with its images first, as predict.py arranges it.

    Raises:
        InputError: the text is empty or not valid Unicode.
    """
    check_prompt(text)
    return [*map(ImagePlace, range(num_images)), text]


def check_prompt(prompt: str) -> None:
    """Refuse a prompt that cannot be tokenised.

    Raises:
        InputError: the prompt is no text, is empty, or is not valid Unicode.
    """
    if not isinstance(prompt, str):
        raise InputError(f"the prompt is a {type(prompt).__name__}; expected a text.")
    if not prompt.strip():
        raise InputError('the prompt is empty; ask something, for example "Describe the image.".')
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the prompt has an unpaired surrogate ({prompt[error.start]!a}) at character "
            f"{error.start + 1}; pass valid Unicode."
        ) from None


def num_positions(parts: Sequence[PromptPart], num_image_tokens: int) -> int:
    """Positions of the context that a prompt takes."""
    return sum(len(part) if isinstance(part, list) else num_image_tokens for part in parts)


def room_for_answer(context_length: int, parts: Sequence[PromptPart], num_image_tokens: int) -> int:
    """Positions of the context that a prompt leaves for its answer, at least 1.

    Raises:
        PromptTooLongError: the prompt leaves no room for an answer.
    """
    positions = num_positions(parts, num_image_tokens)
    images = sum(isinstance(part, ImagePlace) for part in parts)
    room = context_length - positions
    if room < 1:
        image_tokens = images * num_image_tokens
        counted = f" and the image {image_tokens}" if images == 1 else ""
        counted = f" and the {images} images {image_tokens}" if images > 1 else counted
        raise PromptTooLongError(
            f"the prompt has {positions - image_tokens} tokens{counted}, and the context "
            f"holds {context_length}; shorten the prompt by at least {1 - room} tokens."
        )
    return room
