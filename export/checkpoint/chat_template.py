"""Render a checkpoint's chat template once, and cut it where the image and the prompt belong."""

from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fastvlm_onnx.errors import CheckpointError, UnsupportedError
from fastvlm_onnx.export.disk.json_files import read_json
from fastvlm_onnx.names import IMAGE_TOKEN
from fastvlm_onnx.package import PromptFormat

# No template contains this text, so its place in the output is the place of the user's prompt.
_QUESTION = "⟪the question⟫"


def read_chat_template(folder: Path) -> PromptFormat | None:
    """Render one turn with one image.

    The files are searched in transformers' order: chat_template.jinja, chat_template.json,
    tokenizer_config.json.

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
    before, question, after = _render(template, path).partition(_QUESTION)
    before_image, image, before_prompt = before.partition(IMAGE_TOKEN)
    if not question or not image or IMAGE_TOKEN in before_prompt + after or _QUESTION in after:
        raise UnsupportedError(
            f"{path}: the chat template renders {(before + question + after)[:120]!r}, and only "
            f"templates with one {IMAGE_TOKEN} before the user's words are built."
        )
    return PromptFormat(before_image, before_prompt, after)


def _render(template: Any, path: Path) -> str:
    content = [{"type": "image"}, {"type": "text", "text": _QUESTION}]
    # transformers gives a template these settings and this function. The sandbox is needed because
    # a template is code of the checkpoint's author.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(template).render(
            messages=[{"role": "user", "content": content}], add_generation_prompt=True
        )
    # A template works on Python objects, so it can also raise Python's own errors.
    except (TemplateError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: the chat template cannot be rendered ({error}); expected a Jinja template."
        ) from None
