"""True answers about a picture. They have one form for each kind, so a program can read them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from demo_data.drawing import Mark, Sample

Kind = Literal[
    "describe",
    "count",
    "color",
    "shape",
    "where",
    "is there",
    "text",
    "unknown",
    "nothing",
    "at a place",
]
KINDS: tuple[Kind, ...] = get_args(Kind)  # held-out seeds follow this order
UNKNOWN = "I only know shapes, colors and short words."
NOTHING = "There is nothing in the picture."
NO_TEXT = "There is no text."
NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six")


@dataclass(frozen=True)
class Question:
    kind: Kind
    prompt: str
    answer: str


def with_article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def plural(name: str) -> str:
    return f"{name}es" if name == "cross" else f"{name}s"


def listed(parts: list[str]) -> str:
    """Join phrases to a sentence: "A red circle and a blue star."."""
    sentence = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"{sentence[0].upper()}{sentence[1:]}."


def describe(sample: Sample) -> str:
    """The answer to "Describe the image."."""
    if sample.characters:
        noun = "number" if sample.text.isdigit() else "word"
        return f'The {noun} "{sample.text}" in {sample.characters[0].color}.'
    return list_shapes(sample.shapes) if sample.shapes else NOTHING


def list_shapes(shapes: Sequence[Mark]) -> str:
    """Name shapes in their order, those alike together: "Two red circles and a blue star."."""
    amounts = Counter((mark.color, mark.name) for mark in shapes)
    return listed(
        [
            with_article(f"{color} {name}")
            if amount == 1
            else f"{NUMBER_WORDS[amount]} {color} {plural(name)}"
            for (color, name), amount in amounts.items()
        ]
    )


def describe_in_detail(sample: Sample) -> str:
    """The same with a place for each shape."""
    if sample.characters or not sample.shapes:
        return describe(sample)
    return listed([f"{with_article(f'{m.color} {m.name}')} {place(m)}" for m in sample.shapes])


def place(mark: Mark) -> str:
    """Where a shape's centre is, in thirds of the picture."""
    return (
        *("at the top left", "at the top", "at the top right"),
        *("on the left", "in the middle", "on the right"),
        *("at the bottom left", "at the bottom", "at the bottom right"),
    )[mark.ninth]


def has_clear_place(sample: Sample, mark: Mark) -> bool:
    """Whether a person would give the same place: no centre close to a border of thirds."""
    if not sample.has_edges:
        return False
    return all(
        abs(v - border) > 0.055 for v in (mark.across, mark.down) for border in (1 / 3, 2 / 3)
    )


def amount(number: int, one: str, many: str) -> str:
    verb, noun = ("is", one) if number == 1 else ("are", many)
    return f"There {verb} {NUMBER_WORDS[number]} {noun}."
