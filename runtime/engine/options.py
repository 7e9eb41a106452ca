"""Generation options: how long an answer is, how tokens are drawn, where it stops."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, TypedDict

from fastvlm_onnx.arguments import ARGUMENTS
from fastvlm_onnx.errors import InputError

MAX_NEW_TOKENS: Final = 256

TopLogprobs = list[tuple[int, float]]
"""Token ids with the natural logarithms of their probabilities, the most probable first."""


class GenerationOptions(TypedDict, total=False):
    """Keyword options of `generate`, `stream`, `generate_batch` and `Chat.ask`.

    max_new_tokens: the largest number of tokens in an answer; 256. A full context ends it sooner.
    max_time: seconds from the call after which the answer ends; no limit.
    stop: texts that end an answer before they appear in it, across token boundaries; no texts.
    temperature: divides the logits; 0, the default, takes the most probable token.
    top_k: draw among this many of the most probable tokens; 50, and 0 draws among all.
    top_p: draw among the most probable tokens whose probabilities reach this sum; 1.
    min_p: draw among tokens at least this many times as probable as the most probable; 0.
    repetition_penalty: divides the logits of tokens that the answer already has; 1.
    seed: makes a draw repeatable on one machine; a new seed each time.
    logprobs: return each token's log-probability with the answer; False.
    top_logprobs: return this many of the most probable tokens at each position with their
        log-probabilities; 0.
    on_token: is called with each token id; an exception that it raises ends the answer.
    orient: turn the image as its EXIF data say, which predict.py does not do; False.
    ignore_eos: go on past an end token, which then counts as a token; False.
    schema: a JSON Schema, or the class of a pydantic model; the answer is JSON that it describes.
    regex: a regular expression that the whole answer matches.
    choices: texts of which the answer is one.
    """

    max_new_tokens: int
    max_time: float | None
    stop: Sequence[str]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | None
    logprobs: bool
    top_logprobs: int
    on_token: Callable[[int], object] | None
    orient: bool
    ignore_eos: bool
    schema: dict[str, Any] | type | None
    regex: str | None
    choices: Sequence[str] | None


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """`GenerationOptions`, complete and checked."""

    max_new_tokens: int = MAX_NEW_TOKENS
    max_time: float | None = None
    stop: Sequence[str] = ()
    temperature: float = 0.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    on_token: Callable[[int], object] | None = None
    orient: bool = False
    ignore_eos: bool = False
    schema: dict[str, Any] | type | None = None
    regex: str | None = None
    choices: Sequence[str] | None = None

    @property
    def is_greedy(self) -> bool:
        """Whether sampling reads nothing but the largest logit of a step."""
        return (
            self.temperature == 0
            and self.repetition_penalty == 1
            and not self.logprobs
            and not self.top_logprobs
            and not self.is_structured
        )

    def __post_init__(self) -> None:
        """Refuse options that cannot be used.

        Raises:
            InputError: an option is out of range (NaN included) or of another type, or excludes
                another.
        """
        for field in fields(self):
            if field.name in ARGUMENTS:
                checked = ARGUMENTS[field.name](field.name, getattr(self, field.name))
                object.__setattr__(self, field.name, checked)
        self._check_structure()

    @property
    def is_structured(self) -> bool:
        """A schema, a regular expression or choices constrain the answer."""
        return not (self.schema is None and self.regex is None and self.choices is None)

    def _check_structure(self) -> None:
        if not self.is_structured:
            return
        names = ("schema", "regex", "choices")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputError(f"found {' and '.join(given)}; expected only one of them.")
        if self.ignore_eos:
            raise InputError(f"found {given[0]} and ignore_eos; a structured answer ends itself.")
        schema = self.schema
        if not (schema is None or isinstance(schema, dict) or hasattr(schema, "model_json_schema")):
            raise InputError(
                f"schema is a {type(schema).__name__}; expected a dict, or the class of a pydantic "
                "model."
            )
