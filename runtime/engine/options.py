"""What a caller may say about an answer: how long, how drawn, where it stops."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypedDict

from fastvlm_onnx.errors import InputError

MAX_NEW_TOKENS: Final = 256


class Options(TypedDict, total=False):
    """What every way to ask takes by keyword.

    max_new_tokens: the answer ends there at the latest, or where the context is full; 256.
    max_time: or after so many seconds from the call, with what it has then; no limit.
    stop: or before the first of these texts, wherever tokens begin and end; none.
    temperature: divides the logits; 0, the default, takes the likeliest token.
    top_k: draw among so many of the likeliest; 50, and 0 is all.
    top_p: among the likeliest whose probabilities reach this sum; 1.
    min_p: among those at least this many times as likely as the likeliest; 0.
    repetition_penalty: divides what speaks for tokens of the answer so far; 1.
    seed: repeats a draw exactly on one machine; anew each time.
    logprobs: give each token's log-probability with the answer; False.
    on_token: called with each token id as it comes.
    orient: turn the picture as its EXIF data say, which predict.py does not; False.
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
    on_token: Callable[[int], object] | None
    orient: bool


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`Options`, complete and checked."""

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
    on_token: Callable[[int], object] | None = None
    orient: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be used.

        Raises:
            InputError: one of the options; not a number is none.
        """
        for name, is_good, expected in (
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
            ("max_time", self.max_time is None or self.max_time > 0, "seconds above 0"),
            ("temperature", 0 <= self.temperature < float("inf"), "0 or more"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "0 (off) to 1"),
            (
                "repetition_penalty",
                0 < self.repetition_penalty < float("inf"),
                "above 0, 1 being off",
            ),
            ("seed", self.seed is None or self.seed >= 0, "0 or more"),
        ):
            if not is_good:
                raise InputError(f"{name} is {getattr(self, name)}; expected {expected}.")
        if isinstance(self.stop, str):
            raise InputError(f"stop is a text; expected a list of them, like [{self.stop!r}].")
        if not all(isinstance(text, str) and text for text in self.stop):
            raise InputError(f"stop is {list(self.stop)}; expected texts, none of them empty.")
