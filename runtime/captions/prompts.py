"""The prompt for each picture: a text, or a template with fields of the picture's path."""

import string
from collections.abc import Callable
from pathlib import PurePath
from typing import Final

from fastvlm_onnx.errors import InputError
from fastvlm_onnx.runtime.text.prompt import check_prompt

FIELDS: Final[dict[str, Callable[[PurePath], str]]] = {
    "name": lambda path: path.name,
    "stem": lambda path: path.stem,
    "suffix": lambda path: path.suffix,
    "parent": lambda path: path.parent.name,
    "path": str,
}
"""The fields of a template, each a part of the picture's path."""


class PromptTemplate:
    """A prompt with fields such as `{stem}`.

    Only the names of FIELDS are replaced. Attributes, indexes and formats, which `str.format`
    would evaluate, are refused. `{{` and `}}` are braces.
    """

    def __init__(self, template: str) -> None:
        """Read a template.

        Raises:
            InputError: the template is empty, has another field, or has a lone brace.
        """
        check_prompt(template)
        try:
            parts = list(string.Formatter().parse(template))
        except ValueError as error:
            raise InputError(
                f"the template cannot be read ({error}); write {{{{ and }}}} for braces."
            ) from None
        self._parts: list[tuple[str, str | None]] = []
        for text, field, form, conversion in parts:
            if field is not None and (field not in FIELDS or form or conversion):
                written = field + (f"!{conversion}" if conversion else "")
                written += f":{form}" if form else ""
                known = ", ".join(f"{{{name}}}" for name in FIELDS)
                raise InputError(
                    f"the template has the field {{{written[:80]}}}; expected {known}, or "
                    "{{ and }} for braces."
                )
            self._parts.append((text, field))

    def fill(self, path: str) -> str:
        """Return the prompt for a picture.

        Args:
            path: the picture's path, or another name with slashes.
        """
        parsed = PurePath(path)
        return "".join(
            text + ("" if field is None else FIELDS[field](parsed)) for text, field in self._parts
        )
