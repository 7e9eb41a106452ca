"""Read colors and shapes out of an answer, and score it."""

import re
from collections import Counter

from demo_data.answers import NUMBER_WORDS, Question
from demo_data.colors import COLOR_NAMES
from demo_data.outlines import SHAPES

_NAMES = {name: name for name in SHAPES} | {f"{name}s": name for name in SHAPES}
_NAMES["crosses"] = "cross"


def pairs(answer: str) -> Counter[tuple[str, str]]:
    """Return the (color, shape) pairs of a description: "two red circles" is one pair twice."""
    found: Counter[tuple[str, str]] = Counter()
    words = re.findall(r"[a-z]+", answer.lower())
    for k, word in enumerate(words[1:], 1):
        if word in _NAMES and words[k - 1] in COLOR_NAMES:
            amount = words[k - 2] if k > 1 else "a"
            number = NUMBER_WORDS.index(amount) if amount in NUMBER_WORDS else 1
            found[words[k - 1], _NAMES[word]] += number
    return found


def f1(found: Counter[tuple[str, str]], expected: Counter[tuple[str, str]]) -> float:
    """Return the harmonic mean of precision and recall; 1.0 if both are empty."""
    total = found.total() + expected.total()
    return 2 * (found & expected).total() / total if total else 1.0


def score(question: Question, answer: str) -> float:
    """Return 1.0 for a right answer, 0.0 for a wrong one; F1 of the pairs for a description."""
    expected = pairs(question.answer)
    if question.kind in ("describe", "at a place") and expected:
        return f1(pairs(answer), expected)
    return float(answer == question.answer)
