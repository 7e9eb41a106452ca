"""The options that give a prompt for many pictures: a text, a file, or a template."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from fastvlm_onnx.errors import InputError
from fastvlm_onnx.untrusted_files import regular_file_size

if TYPE_CHECKING:
    from fastvlm_onnx.runtime.captions.prompts import PromptTemplate

DEFAULT_PROMPT: Final = "Describe the image."
# The context holds fewer tokens than this file has bytes.
_LARGEST_FILE: Final = 1_000_000


def prompt_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, which gets a text or a template named `prompt`."""

    @wraps(command)
    def with_prompt(
        *args: Any, prompt: str | None, prompt_file: Path | None, template: str | None, **given: Any
    ) -> Any:
        return command(*args, prompt=_prompt(prompt, prompt_file, template), **given)

    decorated: Callable[..., Any] = with_prompt
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


def _prompt(
    prompt: str | None, prompt_file: Path | None, template: str | None
) -> "str | PromptTemplate":
    """Return the prompt that was given, or the default.

    Raises:
        InputError: several were given, or the prompt cannot be read or used.
    """
    from fastvlm_onnx.runtime.captions.prompts import PromptTemplate
    from fastvlm_onnx.runtime.text.prompt import check_prompt

    named = {"--prompt": prompt, "--prompt-file": prompt_file, "--template": template}
    given = [name for name, value in named.items() if value is not None]
    if len(given) > 1:
        raise InputError(f"found {' and '.join(given)}; expected only one of them.")
    if template is not None:
        return PromptTemplate(template)
    text = _read(prompt_file) if prompt_file is not None else prompt
    text = DEFAULT_PROMPT if text is None else text
    check_prompt(text)
    return text


def _read(path: Path) -> str:
    try:
        size = regular_file_size(path, InputError)
        if size > _LARGEST_FILE:
            raise InputError(f"{path}: has {size:,} bytes; expected a prompt.")
        return path.read_text("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8; save the prompt as UTF-8.") from None
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); give a file with a prompt."
        ) from None


_OPTIONS = (
    click.option("--prompt", help=f"The question.  [default: {DEFAULT_PROMPT}]"),
    click.option("--prompt-file", type=click.Path(path_type=Path), help="File with the question."),
    click.option(
        "--template",
        help="The question with fields of each picture's path: {name}, {stem}, {suffix}, {parent}, "
        "{path}.",
    ),
)
