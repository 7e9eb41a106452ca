"""Questions that a picture can be asked, with the answers."""

import random
from collections.abc import Sequence
from statistics import mean

from demo_data.answers import (
    KINDS,
    NO_TEXT,
    NOTHING,
    UNKNOWN,
    Kind,
    Question,
    amount,
    describe,
    describe_in_detail,
    has_clear_place,
    list_shapes,
    listed,
    place,
    plural,
    with_article,
)
from demo_data.colors import COLOR_NAMES
from demo_data.drawing import HELD_OUT_SEED, NINTHS, Mark, Sample, draw_sample
from demo_data.outlines import SHAPES
from demo_data.phrasings import (
    AT_PLACE,
    COLOR,
    COUNT,
    COUNT_SOME,
    DESCRIBE,
    DETAIL,
    HAS_TEXT,
    IS_COLOR,
    IS_THERE,
    NEIGHBOR,
    READ,
    READ_NUMBER,
    SHAPE,
    SHAPE_OF_IT,
    SIDE,
    SOME_TEXT,
    TEXT_NOUNS,
    WHERE,
    WRITTEN,
)
from demo_data.unknown import draw_unknown
from demo_data.wording import fill


def ask(sample: Sample, rng: random.Random) -> list[Question]:
    """Questions of every kind that this picture can be asked, in random order."""
    questions = [Question("describe", fill(rng, rng.choice(DESCRIBE)), describe(sample))]
    if not sample.shapes and not sample.characters:
        questions[0] = Question("nothing", questions[0].prompt, NOTHING)
    if rng.random() < 0.5:
        prompt = fill(rng, rng.choice(DETAIL))
        questions.append(Question(questions[0].kind, prompt, describe_in_detail(sample)))
    number = len(sample.shapes)
    kind: Kind = "count" if sample.shapes else "nothing"
    questions.append(
        Question(kind, fill(rng, rng.choice(COUNT)), amount(number, "shape", "shapes"))
    )
    questions.append(_count_some(sample, rng))
    if rng.random() < 0.15:
        questions.append(_count_words(sample, rng))
    questions += _text_questions(sample, rng)
    questions += _color_and_shape(sample, rng)
    questions += _where(sample, rng)
    questions += [_is_there(sample, rng) for _ in range(2)]
    questions.append(Question("unknown", draw_unknown(rng), UNKNOWN))
    rng.shuffle(questions)
    return questions


def _count_words(sample: Sample, rng: random.Random) -> Question:
    noun = rng.choice(("word", "number"))
    if sample.characters:
        noun = "number" if sample.text.isdigit() else "word"
    prompt = fill(rng, rng.choice(COUNT_SOME), x=plural(noun))
    return Question("count", prompt, amount(bool(sample.characters), noun, plural(noun)))


def _text_questions(sample: Sample, rng: random.Random) -> list[Question]:
    if sample.characters:
        reads = READ + READ_NUMBER if sample.text.isdigit() else READ
        questions = [Question("text", fill(rng, rng.choice(reads)), sample.text) for _ in range(2)]
        color = sample.characters[0].color
        noun = "number" if sample.text.isdigit() else "word"
        asked = rng.choice((*TEXT_NOUNS, f"the {noun}"))
        prompt = fill(rng, rng.choice(COLOR), x=asked)
        questions.append(Question("color", prompt, f"The {noun} is {color}."))
        if rng.random() < 0.3:
            prompt = fill(rng, rng.choice(HAS_TEXT), t=rng.choice(SOME_TEXT))
            questions.append(
                Question("is there", prompt, f'Yes, there is the {noun} "{sample.text}".')
            )
        middle = _middle(sample.characters)
        if rng.random() < 0.4 and has_clear_place(sample, middle):
            asked = rng.choice((*TEXT_NOUNS, f"the {noun}"))
            prompt = fill(rng, rng.choice(WHERE), x=asked)
            questions.append(Question("where", prompt, f"The {noun} is {place(middle)}."))
        return questions
    questions = []
    if rng.random() < 0.5 or not sample.shapes:
        questions.append(Question("nothing", fill(rng, rng.choice(READ)), NO_TEXT))
    if rng.random() < 0.25:
        prompt = fill(rng, rng.choice(HAS_TEXT), t=rng.choice(SOME_TEXT))
        questions.append(Question("is there", prompt, "No, there is no text."))
    if rng.random() < 0.15:
        prompt = fill(rng, rng.choice((*COLOR, *WHERE)), x=rng.choice(WRITTEN))
        questions.append(Question("nothing", prompt, NO_TEXT))
    return questions


def _middle(characters: Sequence[Mark]) -> Mark:
    """The place of a word."""
    across = mean(mark.across for mark in characters)
    down = mean(mark.down for mark in characters)
    x, y = mean(mark.x for mark in characters), mean(mark.y for mark in characters)
    return Mark("", characters[0].color, across, down, x, y)


def _noun(mark: Mark, rng: random.Random, sample: Sample) -> str | None:
    """A phrase that means this shape alone: "circle", "red shape" or "red circle"."""
    names = [m.name for m in sample.shapes]
    colors = [m.color for m in sample.shapes]
    pairs = [(m.color, m.name) for m in sample.shapes]
    choices = []
    if names.count(mark.name) == 1:
        choices += [mark.name] * 2
    if colors.count(mark.color) == 1:
        choices.append(f"{mark.color} shape")
    if pairs.count((mark.color, mark.name)) == 1:
        choices += [f"{mark.color} {mark.name}"] * 2
    return rng.choice(choices) if choices else None


def _absent(sample: Sample, rng: random.Random) -> str | None:
    """A phrase for a shape that is not there, often nearly there."""
    pairs = {(m.color, m.name) for m in sample.shapes}
    for _ in range(8):
        near = rng.choice(sample.shapes) if sample.shapes and rng.random() < 0.5 else None
        color = near.color if near and rng.random() < 0.5 else rng.choice(COLOR_NAMES)
        name = near.name if near and rng.random() < 0.5 else rng.choice(SHAPES)
        form = rng.random()
        if form < 0.4 and all(m.name != name for m in sample.shapes):
            return name
        if form < 0.55 and all(m.color != color for m in sample.shapes):
            return f"{color} shape"
        if form >= 0.55 and (color, name) not in pairs:
            return f"{color} {name}"
    return None


def _count_some(sample: Sample, rng: random.Random) -> Question:
    form = rng.random()
    mark = rng.choice(sample.shapes) if sample.shapes and rng.random() < 0.75 else None
    name = mark.name if mark else rng.choice(SHAPES)
    color = mark.color if mark else rng.choice(COLOR_NAMES)
    if form < 0.5:
        number = sum(m.name == name for m in sample.shapes)
        one, many = name, plural(name)
    elif form < 0.75:
        number = sum(m.color == color for m in sample.shapes)
        one, many = f"{color} shape", f"{color} shapes"
    else:
        number = sum((m.color, m.name) == (color, name) for m in sample.shapes)
        one, many = f"{color} {name}", f"{color} {plural(name)}"
    prompt = fill(rng, rng.choice(COUNT_SOME), x=_grey(rng, many))
    return Question("count", prompt, amount(number, one, many))


def _color_and_shape(sample: Sample, rng: random.Random) -> list[Question]:
    questions = []
    names = [mark.name for mark in sample.shapes]
    colors = [mark.color for mark in sample.shapes]
    for mark in sample.shapes:
        if names.count(mark.name) == 1:
            prompt = fill(rng, rng.choice(COLOR), x=f"the {mark.name}")
            questions.append(Question("color", prompt, f"The {mark.name} is {mark.color}."))
        if colors.count(mark.color) == 1:
            prompt = fill(rng, rng.choice(SHAPE), color_name=_grey(rng, mark.color))
            answer = f"The {mark.color} shape is {with_article(mark.name)}."
            questions.append(Question("shape", prompt, answer))
    rng.shuffle(questions)
    questions = questions[:3]
    if len(sample.shapes) == 1 and rng.random() < 0.5:
        questions.append(_about_it(sample.shapes[0], rng, sample))
    questions += _is_color(sample, rng)
    if not sample.shapes and not sample.characters and rng.random() < 0.3:
        prompt = fill(rng, rng.choice((*COLOR, *SHAPE_OF_IT)), x=rng.choice(_IT))
        questions.append(Question("nothing", prompt, NOTHING))
    name, color = rng.choice(SHAPES), rng.choice(COLOR_NAMES)
    if rng.random() < 0.25 and name not in names:
        prompt = fill(rng, rng.choice(COLOR), x=f"the {name}")
        questions.append(Question("color", prompt, f"There is no {name}."))
    if rng.random() < 0.2 and color not in colors and not sample.characters:
        prompt = fill(rng, rng.choice(SHAPE), color_name=_grey(rng, color))
        questions.append(Question("shape", prompt, f"There is no {color} shape."))
    return questions


def _is_color(sample: Sample, rng: random.Random) -> list[Question]:
    """Whether a shape has a color; the answer names the right color."""
    names = [mark.name for mark in sample.shapes]
    single = [mark for mark in sample.shapes if names.count(mark.name) == 1]
    absent = rng.choice(SHAPES)
    if absent not in names and rng.random() < 0.15:
        color = _grey(rng, rng.choice(COLOR_NAMES))
        prompt = fill(rng, rng.choice(IS_COLOR), x=f"the {absent}", color_name=color)
        return [Question("color", prompt, f"There is no {absent}.")]
    if not single or rng.random() < 0.6:
        return []
    mark = rng.choice(single)
    others = [mark.color, mark.color, *(m.color for m in sample.shapes), rng.choice(COLOR_NAMES)]
    color = rng.choice(others)
    prompt = fill(rng, rng.choice(IS_COLOR), x=f"the {mark.name}", color_name=_grey(rng, color))
    yes = "Yes" if color == mark.color else "No"
    return [Question("color", prompt, f"{yes}, the {mark.name} is {mark.color}.")]


_IT = ("it", "it", "the shape", "the object")


def _about_it(mark: Mark, rng: random.Random, sample: Sample) -> Question:
    """A question about the only shape that does not name it."""
    if rng.random() < 0.3 and has_clear_place(sample, mark):
        prompt = fill(rng, rng.choice(WHERE), x=rng.choice(_IT))
        return Question("where", prompt, f"The {mark.name} is {place(mark)}.")
    if rng.random() < 0.5:
        prompt = fill(rng, rng.choice(COLOR), x=rng.choice(_IT))
        return Question("color", prompt, f"The {mark.name} is {mark.color}.")
    prompt = fill(rng, rng.choice(SHAPE_OF_IT))
    return Question("shape", prompt, f"The {mark.color} shape is {with_article(mark.name)}.")


def _grey(rng: random.Random, phrase: str) -> str:
    return phrase.replace("gray", "grey") if rng.random() < 0.4 else phrase


def _where(sample: Sample, rng: random.Random) -> list[Question]:
    questions: list[Question] = []
    for mark in sample.shapes:
        noun = _noun(mark, rng, sample)
        if noun and has_clear_place(sample, mark):
            prompt = fill(rng, rng.choice(WHERE), x=_grey(rng, f"the {noun}"))
            questions.append(Question("where", prompt, f"The {noun} is {place(mark)}."))
    rng.shuffle(questions)
    questions = questions[:2]
    if len(sample.shapes) > 1:
        questions += _sides(sample, rng)
    questions += _at_place(sample, rng)
    absent = _absent(sample, rng)
    if absent and rng.random() < 0.15:
        prompt = fill(rng, rng.choice(WHERE), x=_grey(rng, f"the {absent}"))
        questions.append(Question("where", prompt, f"There is no {absent}."))
    return questions


PLACES = {
    "on the left": (0, 3, 6),
    "on the right": (2, 5, 8),
    "at the top": (0, 1, 2),
    "at the bottom": (6, 7, 8),
    "in the middle": (4,),
    "at the top left": (0,),
    "at the top right": (2,),
    "at the bottom left": (6,),
    "at the bottom right": (8,),
}


def _at_place(sample: Sample, rng: random.Random) -> list[Question]:
    """A description of some ninths of the picture, if every shape has a clear place."""
    if not all(has_clear_place(sample, mark) for mark in sample.shapes):
        return []
    if not sample.shapes or rng.random() < 0.5:
        return []
    ninth = rng.choice(sample.shapes).ninth if rng.random() < 0.8 else rng.randrange(NINTHS)
    where = rng.choice([name for name, ninths in PLACES.items() if ninth in ninths])
    prompt = fill(rng, rng.choice(AT_PLACE), place=where)
    found = [mark for mark in sample.shapes if mark.ninth in PLACES[where]]
    answer = list_shapes(found) if found else f"There is nothing {where}."
    return [Question("at a place", prompt, answer)]


SIDES = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "lower than"),
}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def _sides(sample: Sample, rng: random.Random) -> list[Question]:
    """Where two shapes are to each other, if the direction is clear."""
    first, second = rng.sample(sample.shapes, 2)
    dx, dy = (second.x - first.x) / 256, (second.y - first.y) / 256
    if max(abs(dx), abs(dy)) < 0.12 or abs(abs(dx) - abs(dy)) < 0.1:
        return []
    side = (
        ("left of" if dx > 0 else "right of")
        if abs(dx) > abs(dy)
        else ("above" if dy > 0 else "below")
    )
    x, y = _noun(first, rng, sample), _noun(second, rng, sample)
    if x is None or y is None:
        return []
    if len(sample.shapes) == 2 and rng.random() < 0.4:
        prompt = fill(rng, rng.choice(NEIGHBOR), x=f"the {y}", side=rng.choice(SIDES[side][:2]))
        return [Question("where", prompt, listed([with_article(f"{first.color} {first.name}")]))]
    asked = side if rng.random() < 0.5 else OPPOSITE[side]
    prompt = fill(rng, rng.choice(SIDE), x=f"the {x}", y=f"the {y}", side=rng.choice(SIDES[asked]))
    yes = "Yes" if asked == side else "No"
    return [Question("where", prompt, f"{yes}, the {x} is {side} the {y}.")]


def _is_there(sample: Sample, rng: random.Random) -> Question:
    if sample.shapes and rng.random() < 0.5:
        mark = rng.choice(sample.shapes)
        noun = rng.choice((mark.name, f"{mark.color} {mark.name}", f"{mark.color} shape"))
        answer = f"Yes, there is {with_article(noun)}."
    else:
        absent = _absent(sample, rng)
        if absent is None:
            return Question("unknown", draw_unknown(rng), UNKNOWN)
        noun, answer = absent, f"No, there is no {absent}."
    asked = _grey(rng, noun)
    if asked.endswith(" shape") and rng.random() < 0.5:
        color = asked.removesuffix(" shape")
        phrase = rng.choice(
            (f"anything {color}", f"something {color}", f"{with_article(color)} object")
        )
    else:
        phrase = with_article(asked) if rng.random() < 0.85 else f"any {asked}"
    return Question("is there", fill(rng, rng.choice(IS_THERE), x=phrase), answer)


# --- held-out questions ------------------------------------------------------------------------


def held_out(kind: Kind, number: int) -> list[tuple[Sample, Question]]:
    """The first `number` held-out pictures that can be asked a question of this kind."""
    pairs: list[tuple[Sample, Question]] = []
    seed = HELD_OUT_SEED + KINDS.index(kind) * 1_000_000
    while len(pairs) < number:
        sample = draw_sample(seed)
        questions = [q for q in ask(sample, random.Random(seed)) if q.kind == kind]
        if questions:
            pairs.append((sample, questions[0]))
        seed += 1
    return pairs
