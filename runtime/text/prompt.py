"""The user's words inside the conversation template, split where the image goes."""

from dataclasses import dataclass

from fastvlm_onnx.errors import InputError, PromptTooLongError
from fastvlm_onnx.package import PromptFormat
from fastvlm_onnx.runtime.text.tokenizer import TextTokenizer


@dataclass(frozen=True)
class PromptIds:
    """Token ids before and after the image's place."""

    before_image: list[int]
    after_image: list[int]

    def __len__(self) -> int:
        return len(self.before_image) + len(self.after_image)


def check_prompt(prompt: str) -> None:
    """Raise InputError for a prompt that is empty, or has halves of characters in it."""
    if not prompt.strip():
        raise InputError('the prompt is empty; ask something, for example "Describe the image.".')
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the prompt's character {error.start + 1} is {prompt[error.start]!a}, half of one; "
            "expected text in UTF-8."
        ) from None


def tokenize_prompt(tokenizer: TextTokenizer, template: PromptFormat, prompt: str) -> PromptIds:
    """Fill the template; each piece is tokenised by itself, as predict.py does.

    Raises:
        InputError: the prompt is empty, or has halves of characters in it.
    """
    check_prompt(prompt)
    # The user's words are never split at special tokens, so `<image>` in them adds no picture and
    # `<|im_end|>` does not end the turn.
    return PromptIds(
        before_image=tokenizer.encode_template(template.before_image),
        after_image=tokenizer.encode(template.before_prompt + prompt)
        + tokenizer.encode_template(template.after_prompt),
    )


def room_for_answer(context_length: int, prompt_tokens: int, image_tokens: int) -> int:
    """Positions of the context that a prompt and its image leave for the answer.

    Raises:
        PromptTooLongError: none.
    """
    room = context_length - prompt_tokens - image_tokens
    if room < 1:
        raise PromptTooLongError(
            f"the prompt has {prompt_tokens} tokens and the image {image_tokens}, and the context "
            f"holds {context_length}; shorten the prompt by at least {1 - room} tokens."
        )
    return room
