"""Scores of answers: descriptions by F1, everything else right or wrong."""

import re
from collections import Counter

from second_program.canvas import Drawing
from second_program.colors import COLORS
from second_program.outlines import SHAPES
from second_program.questions import PLACES, UNKNOWN, Question

NUMBERS = {
    word: number
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve".split()
    )
}
NOUNS = {**{name: name for name in SHAPES}, **{f"{name}s": name for name in SHAPES}}
NOUNS["crosses"] = NOUNS.pop("crosss")
COLOR_WORDS = {**{name: name for name in COLORS}, "grey": "gray"}


def _either(words: object) -> str:
    return "|".join(sorted(map(str, words), key=len, reverse=True))  # type: ignore[call-overload]


ITEM = re.compile(
    rf"\b(?:(an?|the|another|\d{{1,2}}|{_either(NUMBERS)})\s+)?"
    rf"({_either(COLOR_WORDS)})\s+({_either(NOUNS)})\b"
)
PLACE = re.compile(rf"\b({_either(PLACES)})\b")
NOTHING = re.compile(r"\bnothing\b")
NO_TEXT = re.compile(r"\b(no|any) (text|words?|writing|letters?)\b")
NO_SHAPES = re.compile(r"\b(no|any|zero|0) (shapes?|objects?)\b|\b(picture|image) is empty\b")


def pairs(answer: str) -> Counter[tuple[str, str]]:
    """Return how many shapes of each (colour, name) an answer lists."""
    found: Counter[tuple[str, str]] = Counter()
    for number, color, noun in ITEM.findall(answer.lower()):
        amount = int(number) if number.isdigit() else NUMBERS.get(number, 1)
        found[COLOR_WORDS[color], NOUNS[noun]] += amount
    return found


def quoted(answer: str) -> list[str]:
    """Return the texts in double quotes, straight or curved."""
    return re.findall(r'["“]([^"“”]*)["”]', answer)


def judge(drawing: Drawing, question: Question, answer: str) -> float:
    """Score an answer.

    Args:
        drawing: the picture that the question was asked about.
        question: a question of `questions`.
        answer: the model's answer.

    Returns:
        For "describe", the F1 of the (colour, shape) pairs, 0 to 1; in a picture of a word, 1 for
        the word and 0.5 for the word with a wrong colour. For every other kind, 0 or 1.
    """
    answer = answer.strip()
    lower = answer.lower()
    kind, expected = question.kind, question.expected
    if kind == "describe":
        return _describe(drawing, answer)
    if kind == "count":
        found = re.findall(rf"\b(\d+|no|{_either(NUMBERS)})\b", lower)
        values = {int(n) if n.isdigit() else NUMBERS.get(n, 0) for n in found}
        return float(values == {int(expected)})
    if kind == "color":
        return float(_words(lower, COLOR_WORDS) == {expected})
    if kind == "shape":
        return float(_words(lower, NOUNS) == {expected})
    if kind == "where":
        return float(set(PLACE.findall(lower)) == {expected})
    if kind == "is_there":
        return float(re.match(r"[a-z]*", lower).group() == expected.lower())  # type: ignore[union-attr]
    if kind == "text":
        return float(answer == expected or quoted(answer) == [expected])
    if kind == "unknown":
        return float(answer == UNKNOWN)
    return _nothing(expected, lower, answer)


def _words(lower: str, names: dict[str, str]) -> set[str]:
    return {names[word] for word in re.findall(rf"\b({_either(names)})\b", lower)}


def _describe(drawing: Drawing, answer: str) -> float:
    if drawing.text is not None:
        if quoted(answer) != [drawing.text]:
            return 0.0
        named = _words(re.sub(r'["“][^"“”]*["”]', "", answer.lower()), COLOR_WORDS)
        return 1.0 if named <= {drawing.text_color} else 0.5
    expected = Counter((shape.color, shape.name) for shape in drawing.shapes)
    found = pairs(answer)
    if not found:
        return 0.0
    return 2 * (expected & found).total() / (expected.total() + found.total())


def _nothing(expected: str, lower: str, answer: str) -> float:
    """Score an answer that must deny; a denial beside a named shape or word is wrong."""
    if pairs(answer) or quoted(answer):
        return 0.0
    denials = [NOTHING]
    denials += {"no text": [NO_TEXT], "no shapes": [NO_SHAPES], "nothing": [NO_SHAPES, NO_TEXT]}[
        expected
    ]
    return float(any(denial.search(lower) for denial in denials))
