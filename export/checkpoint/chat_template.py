"""Render a checkpoint's chat template, and find the turns of a conversation in the text."""

from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fastvlm_onnx.errors import CheckpointError, UnsupportedError
from fastvlm_onnx.export.disk.json_files import read_json
from fastvlm_onnx.names import IMAGE_TOKEN
from fastvlm_onnx.package import PromptFormat

# Texts that no template holds: they come out where a prompt or an answer goes.
_PROMPT, _ANSWER, _SECOND_PROMPT = "⟪the prompt⟫", "⟪the answer⟫", "⟪the second prompt⟫"
_IMAGE_AND_PROMPT = [{"type": "image"}, {"type": "text", "text": _PROMPT}]
_CONVERSATION = [
    {"role": "user", "content": _IMAGE_AND_PROMPT},
    {"role": "assistant", "content": [{"type": "text", "text": _ANSWER}]},
    {"role": "user", "content": [{"type": "text", "text": _SECOND_PROMPT}]},
]


def read_chat_template(folder: Path) -> PromptFormat | None:
    """Read the text around one image and one prompt; None where there is no template.

    The template is in chat_template.jinja, chat_template.json or tokenizer_config.json, the first
    of these files that has it, as in transformers.

    Args:
        folder: a checkpoint.

    Returns:
        The text before the image, before the prompt and after the prompt; None if no file holds a
        template.

    Raises:
        CheckpointError: the template cannot be rendered.
        UnsupportedError: the template does not place exactly one image before the prompt.
    """
    path = folder / "chat_template.jinja"
    template: Any = None
    if path.is_file():
        template = path.read_text("utf-8")
    else:
        for path in (folder / "chat_template.json", folder / "tokenizer_config.json"):
            if path.is_file() and (template := read_json(path).get("chat_template")):
                break
    if template is None:
        return None
    text = _render(template, path, _CONVERSATION[:1])
    before, prompt, after = text.partition(_PROMPT)
    before_image, image, after_image = before.partition(IMAGE_TOKEN)
    if not prompt or not image or IMAGE_TOKEN in after_image + after or _PROMPT in after:
        raise UnsupportedError(
            f"{path}: the chat template renders {text[:120]!r}, and only "
            f"templates with one {IMAGE_TOKEN} before the user's words are built."
        )
    end_of_turn, user = _find_turns(template, path, before_image, after)
    return PromptFormat(
        system=before_image.removesuffix(user) if user else "",
        user=user or before_image,
        after_image=after_image,
        end_of_turn=end_of_turn,
        assistant=after.removeprefix(end_of_turn),
    )


def _find_turns(template: Any, path: Path, before_image: str, after: str) -> tuple[str, str]:
    """Find the text that ends a turn and the text that begins a turn of the user.

    Args:
        template: the Jinja template.
        path: the template's file, for messages.
        before_image: the rendered text before the image of a first turn.
        after: the rendered text between the prompt and the answer.

    Returns:
        Two empty texts where every turn is not ended by one text: such a template has no turns
        that a conversation could be made of.
    """
    try:
        _, _, end_of_turn = _render(template, path, _CONVERSATION[:1], False).partition(_PROMPT)
        _, _, rest = _render(template, path, _CONVERSATION).partition(_ANSWER)
    except CheckpointError:  # some templates refuse a conversation
        return "", ""
    between, _, after_second = rest.partition(_SECOND_PROMPT)
    user = between.removeprefix(end_of_turn)
    has_turns = (
        bool(end_of_turn and user)
        and between == end_of_turn + user
        and before_image.endswith(user)
        and after.startswith(end_of_turn)
        and after_second == after
    )
    return (end_of_turn, user) if has_turns else ("", "")


def _render(
    template: Any, path: Path, messages: list[dict[str, Any]], add_generation_prompt: bool = True
) -> str:
    # The settings and names that transformers gives a template. The template is another author's
    # code, so it runs in a sandbox.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(template).render(
            messages=messages, add_generation_prompt=add_generation_prompt
        )
    # A template works on Python objects, so it can also raise Python's own errors.
    except (TemplateError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: the chat template cannot be rendered ({error}); expected a Jinja template."
        ) from None
