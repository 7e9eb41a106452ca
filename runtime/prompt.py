"""The user's words inside the conversation template, split where the image goes."""

from dataclasses import dataclass

from fastvlm_onnx.errors import InputError
from fastvlm_onnx.package import PromptFormat
from fastvlm_onnx.runtime.tokenizer import TextTokenizer


@dataclass(frozen=True)
class PromptIds:
    """Token ids before and after the image's place."""

    before_image: list[int]
    after_image: list[int]

    def __len__(self) -> int:
        return len(self.before_image) + len(self.after_image)


def tokenize_prompt(tokenizer: TextTokenizer, template: PromptFormat, prompt: str) -> PromptIds:
    """Fill the template; each piece is tokenised by itself, as predict.py does.

    Raises:
        InputError: the prompt is empty.
    """
    if not prompt.strip():
        raise InputError('the prompt is empty; ask something, for example "Describe the image.".')
    # The user's words are never split at special tokens, so `<image>` in them adds no picture and
    # `<|im_end|>` does not end the turn.
    return PromptIds(
        before_image=tokenizer.encode_template(template.before_image),
        after_image=tokenizer.encode(template.before_prompt + prompt)
        + tokenizer.encode_template(template.after_prompt),
    )
