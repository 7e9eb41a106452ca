"""A schema, a regular expression or choices as llguidance's grammar; knows no tokens.

Any of them may come from a stranger, so their sizes are checked before llguidance reads them.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from fastvlm_onnx.errors import InputError
from fastvlm_onnx.optional_packages import optional_packages
from fastvlm_onnx.runtime.engine.options import GenerationConfig

MAX_SCHEMA_BYTES: Final = 32_768
# Levels of JSON. A level of a schema is two: its own and that of "properties" or "items".
MAX_SCHEMA_DEPTH: Final = 64
MAX_REGEX_BYTES: Final = 4_096
MAX_CHOICES: Final = 1_000
MAX_CHOICES_BYTES: Final = 32_768


@dataclass(frozen=True)
class Grammar:
    """The texts that an answer may be.

    Attributes:
        option: the option that asks for it: "schema", "regex" or "choices".
        text: the grammar in llguidance's own form.
    """

    option: str
    text: str


def grammar_of(config: GenerationConfig) -> Grammar | None:
    """The grammar that the options of an answer ask for; None for an answer in free text.

    Raises:
        InputError: the schema, the regular expression or the choices are too large, or are no JSON;
            or llguidance is not installed.
    """
    if not config.is_structured:
        return None
    with optional_packages("a structured answer", "structured"):
        from llguidance import LLMatcher
    if config.choices is not None:
        return Grammar("choices", LLMatcher.grammar_from_regex(_alternatives(config.choices)))
    if config.regex is not None:
        _check_bytes("regex", config.regex, MAX_REGEX_BYTES)
        return Grammar("regex", LLMatcher.grammar_from_regex(config.regex))
    schema = _schema_text(config.schema)
    # A schema may hold llguidance's own settings, which do not make it less strict. Without white
    # space an answer takes the fewest tokens, and a model cannot repeat line breaks for ever.
    text = LLMatcher.grammar_from_json_schema(
        schema, overrides={"whitespace_flexible": False, "lenient": False}
    )
    return Grammar("schema", text)


def _schema_text(schema: Any) -> str:
    """A JSON Schema, or the class of a pydantic model, as JSON."""
    is_pydantic = not isinstance(schema, dict)
    schema = schema.model_json_schema() if is_pydantic else schema
    _check_depth(schema)
    if is_pydantic:
        schema = _without_other_fields(schema)
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise InputError(f"schema is no JSON ({error}); expected JSON values.") from None
    _check_bytes("schema", text, MAX_SCHEMA_BYTES)
    return text


def _without_other_fields(schema: Any) -> Any:
    """The same schema, whose objects have no fields but those that it names.

    pydantic ignores other fields and leaves them out of its schemas, which then allow any number.
    """
    if isinstance(schema, list):
        return [_without_other_fields(value) for value in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _without_other_fields(value) for key, value in schema.items()}
    if closed.get("type") == "object" and "properties" in closed:
        closed.setdefault("additionalProperties", False)
    return closed


def _check_depth(schema: dict[str, Any]) -> None:
    level: list[Any] = [schema]
    for _ in range(MAX_SCHEMA_DEPTH):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
    if level:
        raise InputError(
            f"schema is nested deeper than {MAX_SCHEMA_DEPTH} levels of JSON; "
            'make it flatter, for example with "$defs".'
        )


def _alternatives(choices: Sequence[str]) -> str:
    """A regular expression of exactly these texts."""
    if len(choices) > MAX_CHOICES:
        raise InputError(f"choices has {len(choices)} texts; expected at most {MAX_CHOICES}.")
    _check_bytes("choices", "".join(choices), MAX_CHOICES_BYTES)
    return "|".join(map(re.escape, choices))


def _check_bytes(option: str, text: str, most: int) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InputError(
            f"{option} has an unpaired surrogate ({text[error.start]!a}); pass valid Unicode."
        ) from None
    if size > most:
        raise InputError(f"{option} has {size} bytes; expected at most {most}.")
