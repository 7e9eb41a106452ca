"""Prompts: the template's and the user's text as token ids, with places for images.

A prompt is a list of parts in the order of the context. A part is a list of token ids or the place
of an image; any number of either may come in any order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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
Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """A message of a conversation that is given as a whole.

    Attributes:
        content: texts and images in any number and order; only a user's message has images.
    """

    role: Role
    content: Sequence[str | ImagePlace]

    @property
    def text(self) -> str:
        """The message's texts joined."""
        return "".join(part for part in self.content if isinstance(part, str))


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

    def conversation(self, messages: Sequence[Message]) -> list[PromptPart]:
        """A conversation given as a whole, up to the place where the answer begins.

        A first system message takes the place of the template's own system text. Where the
        template has no system turn, system texts come before the next user's text. An answer is
        tokenised as text, so its tokens can differ from those that the model drew.

        Args:
            messages: in the order of the conversation.

        Raises:
            InputError: no message is the user's, an image is in another's message, a text is not
                valid Unicode, or the template has no turns and a message is an answer.
        """
        self._check_conversation(messages)
        system_begin = self._system_begin()
        has_system = bool(system_begin) and messages[0].role == "system"
        parts: list[PromptPart] = [] if has_system else [self.system()]
        pending = ""
        for message in messages:
            if message.role == "system" and not system_begin:
                pending += f"{message.text}\n\n"
                continue
            if message.role == "user":
                content = [pending, *message.content] if pending else message.content
                parts += self._begun_turn(self.text.user, content)
                pending = ""
            else:
                begin = system_begin if message.role == "system" else self.text.assistant
                parts += [
                    self.tokenizer.encode_template(begin),
                    self.tokenizer.encode(message.text),
                ]
            parts.append(self.end_of_turn())
        return _joined([*parts, self.tokenizer.encode_template(self.text.assistant)])

    def _system_begin(self) -> str:
        """Text that begins a system message; empty where the template has no system turn.

        The template's own system text is such a turn if it begins as a user's turn does but for
        the role, and ends as turns end.
        """
        begin, end = self.text.user.replace("user", "system"), self.text.end_of_turn
        is_turn = end and self.text.system.startswith(begin) and self.text.system.endswith(end)
        return begin if is_turn and begin != self.text.user else ""

    def _check_conversation(self, messages: Sequence[Message]) -> None:
        if not any(message.role == "user" for message in messages):
            raise InputError("no message is the user's; ask something in a message of the user.")
        for message in messages:
            check_unicode(message.text)
            has_image = any(isinstance(part, ImagePlace) for part in message.content)
            if has_image and message.role != "user":
                raise InputError(
                    f"a message of the role {message.role} has an image; put the image in a "
                    "message of the user."
                )
        turns = sum(message.role != "system" for message in messages)
        if turns > 1 and not self.text.end_of_turn:
            raise InputError("the package's prompt template has no turns: send one user message.")

    def _turn(self, before: str, content: Sequence[str | ImagePlace]) -> list[PromptPart]:
        after = self.tokenizer.encode_template(self.text.after_prompt)
        return _joined([*self._begun_turn(before, content), after])

    def _begun_turn(self, before: str, content: Sequence[str | ImagePlace]) -> list[PromptPart]:
        """A user's turn up to its end, which is left out."""
        parts: list[PromptPart] = [self.tokenizer.encode_template(before)]
        pending = ""
        for item in content:
            if isinstance(item, str):
                check_unicode(item)
                pending += item
                continue
            if not isinstance(item, ImagePlace):
                raise InputError(
                    f"the content has a {type(item).__name__}; expected texts and ImagePlaces."
                )
            parts += [self.tokenizer.encode(pending)] if pending else []
            parts.append(item)
            pending = self.text.after_image
        return [*parts, self.tokenizer.encode(pending)] if pending else parts


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
    check_unicode(prompt)


def check_unicode(text: str) -> None:
    """Refuse a text that has no UTF-8 form.

    Raises:
        InputError: the text has an unpaired surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the prompt has an unpaired surrogate ({text[error.start]!a}) at character "
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
