"""Render a checkpoint's chat template, and find the turns of a conversation in the text."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fastvlm_onnx.errors import CheckpointError, UnsupportedError
from fastvlm_onnx.export.checkpoint import render_template
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
# Processor time of a template, which renders in milliseconds.
SECONDS: Final = 10


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
        CheckpointError: the template cannot be rendered, or takes too much time or memory.
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
    first, without_answer = (
        {"messages": _CONVERSATION[:1], "add_generation_prompt": prompts}
        for prompts in (True, False)
    )
    whole = {"messages": _CONVERSATION, "add_generation_prompt": True}
    text, *others = _render(template, path, [first, without_answer, whole])
    assert text is not None
    before, prompt, after = text.partition(_PROMPT)
    before_image, image, after_image = before.partition(IMAGE_TOKEN)
    if not prompt or not image or IMAGE_TOKEN in after_image + after or _PROMPT in after:
        raise UnsupportedError(
            f"{path}: the chat template renders {text[:120]!r}, and only "
            f"templates with one {IMAGE_TOKEN} before the user's words are built."
        )
    end_of_turn, user = _find_turns(others, before_image, after)
    return PromptFormat(
        system=before_image.removesuffix(user) if user else "",
        user=user or before_image,
        after_image=after_image,
        end_of_turn=end_of_turn,
        assistant=after.removeprefix(end_of_turn),
    )


def _find_turns(rendered: list[str | None], before_image: str, after: str) -> tuple[str, str]:
    """Find the text that ends a turn and the text that begins a turn of the user.

    Args:
        rendered: the first turn without a generation prompt, and the whole conversation; None
            where the template refused it.
        before_image: the rendered text before the image of a first turn.
        after: the rendered text between the prompt and the answer.

    Returns:
        Two empty texts where every turn is not ended by one text: such a template has no turns
        that a conversation could be made of.
    """
    first_turn, conversation = rendered
    if first_turn is None or conversation is None:
        return "", ""
    _, _, end_of_turn = first_turn.partition(_PROMPT)
    _, _, rest = conversation.partition(_ANSWER)
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
    template: Any, path: Path, conversations: Sequence[Mapping[str, Any]]
) -> list[str | None]:
    """Render a template for several conversations in a process with limits.

    Args:
        template: the Jinja template, another author's program.
        path: the template's file, for messages.
        conversations: names and values for the template.

    Returns:
        A text for each conversation. None where the template refused a conversation after the
        first, as some templates do.

    Raises:
        CheckpointError: the template cannot be rendered for the first conversation, or takes too
            much time or memory.
    """

    def refused(reason: str) -> CheckpointError:
        return CheckpointError(
            f"{path}: the chat template cannot be rendered ({reason}); expected a Jinja template."
        )

    given = json.dumps({"template": template, "conversations": conversations, "seconds": SECONDS})
    too_much = f"it takes more than {SECONDS} s or too much memory"
    try:
        done = subprocess.run(
            [sys.executable, render_template.__file__],
            # The child finds jinja2 where this process does.
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            input=given.encode(),
            capture_output=True,
            timeout=2 * SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise refused(too_much) from None
    if done.returncode:
        # A signal ends a process that reaches a limit.
        raise refused(too_much if done.returncode < 0 else _last_line(done.stderr))
    results: list[dict[str, str]] = json.loads(done.stdout)
    if "error" in results[0]:
        raise refused(results[0]["error"])
    return [result.get("text") for result in results]


def _last_line(stderr: bytes) -> str:
    lines = stderr.decode("utf-8", "replace").split("\n")
    return next((line[:200] for line in reversed(lines) if line.strip()), "no message")
