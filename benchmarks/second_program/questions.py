"""Questions as strangers phrase them, with their expected answers."""

from collections import Counter
from dataclasses import dataclass
from itertools import product

import numpy as np

from second_program.canvas import Drawing, Shape
from second_program.colors import COLORS
from second_program.outlines import SHAPES

KINDS = ("describe", "count", "color", "shape", "where", "is_there", "text", "unknown", "nothing")
UNKNOWN = "I only know shapes, colors and short words."
PLACES = (
    "at the top left",
    "at the top",
    "at the top right",
    "on the left",
    "in the middle",
    "on the right",
    "at the bottom left",
    "at the bottom",
    "at the bottom right",
)
# A centre this near to a third's border has no clear place; a share of the picture's side.
PLACE_MARGIN = 0.07


@dataclass(frozen=True)
class Question:
    """A question about a drawing.

    Attributes:
        kind: a name of KINDS.
        prompt: the question's text.
        expected: the fact that `judge` looks for, not a whole sentence.
    """

    kind: str
    prompt: str
    expected: str


DESCRIBE = (
    "What do you see?",
    "What's in this picture?",
    "Describe what you see.",
    "What is shown here?",
    "Tell me about this image.",
    "What can you see in the image?",
    "Please describe this drawing.",
    "what is in the picture",
    "Can you describe the picture for me?",
    "What does this picture show?",
    "Explain what is in this image.",
    "What is this?",
)
COUNT = (
    "How many shapes are there?",
    "How many shapes can you see?",
    "How many objects are in the picture?",
    "Count the shapes, please.",
    "how many shapes do you see",
    "What is the number of shapes?",
    "How many things are in this image?",
    "Can you count the shapes?",
    "How many figures are drawn here?",
)
COLOR = (
    "What color is the {shape}?",
    "What colour is the {shape}?",
    "Which color does the {shape} have?",
    "Which colour is the {shape}?",
    "what's the color of the {shape}?",
    "Tell me the colour of the {shape}.",
    "The {shape} is what color?",
    "What is the {shape}'s color?",
    "Can you tell me what color the {shape} is?",
)
SHAPE = (
    "What shape is {color}?",
    "Which shape is {color}?",
    "What is the {color} shape?",
    "What is the {color} thing?",
    "What kind of shape is the {color} one?",
    "What shape is the {color} object?",
    "Name the {color} shape.",
    "the {color} one, what shape is it?",
    "What is the shape of the {color} object?",
)
WHERE = (
    "Where is the {thing}?",
    "where's the {thing}?",
    "In which part of the picture is the {thing}?",
    "Where in the image is the {thing}?",
    "Where can I find the {thing}?",
    "Where do you see the {thing}?",
    "What is the position of the {thing}?",
    "Tell me where the {thing} is.",
    "Can you locate the {thing}?",
)
IS_THERE = (
    "Is there {thing}?",
    "Is there {thing} in the picture?",
    "Do you see {thing}?",
    "Can you see {thing} here?",
    "Does the image contain {thing}?",
    "Does the picture have {thing} in it?",
    "is there {thing} in this image",
    "Is {thing} shown here?",
    "I am looking for {thing}. Is there any?",
)
TEXT = (
    "What does it say?",
    "What's written here?",
    "what is written in the picture?",
    "Read the text.",
    "Which word is this?",
    "Can you read this?",
    "What does the text say?",
    "Please read the word in the image.",
    "What word do you see?",
    "What does this sign say?",
)
UNKNOWN_PROMPTS = (
    "What is the weather like today?",
    "Will it rain tomorrow?",
    "What time is it?",
    "What day is today?",
    "What is the capital of France?",
    "Which is the largest country in the world?",
    "Who drew this?",
    "Who painted this picture?",
    "What is your name?",
    "How old are you?",
    "Who made you?",
    "What is seven times eight?",
    "What is 12 + 30?",
    "How much does a coffee cost?",
    "How much is this picture worth?",
    "Do you like this picture?",
    "Is this picture beautiful?",
    "What is the meaning of life?",
    "Tell me a joke.",
    "Write a poem about the sea.",
    "Who won the World Cup in 2018?",
    "When was this photo taken?",
    "Where was this picture taken?",
    "What camera was used?",
    "Is the person in the picture happy?",
    "What is the man wearing?",
    "How tall is that building?",
    "What breed is the dog?",
    "What is the name of the cat?",
    "Translate this into French.",
    "What is the French word for house?",
    "How do I bake bread?",
    "What should I eat tonight?",
    "Can you recommend a good film?",
    "Who is the president of the United States?",
    "How far is the moon?",
    "Why is the sky blue?",
    "What is the boiling point of water?",
    "Which car is the fastest?",
    "What brand is this?",
    "Which language do people speak in Brazil?",
    "How do I get to the station?",
    "What is the best phone?",
    "How many legs does a spider have?",
    "Who wrote Hamlet?",
    "Is this food healthy?",
    "What song is playing?",
    "Can you book a table for two?",
    "What does my dream mean?",
    "Write a Python function that sorts a list.",
)
# Asked about an empty picture: the prompt, and the denial that is expected.
NOTHING_IN_EMPTY = (
    *((prompt, "nothing") for prompt in DESCRIBE),
    *((prompt, "no text") for prompt in TEXT),
    *((prompt, "no shapes") for prompt in COUNT),
)


# Squared and ruled paper have these, or nearly.
PAPER = {
    *((color, "line") for color in COLORS),
    *product(("blue", "gray", "white"), ("square", "rectangle")),
}


def place(shape: Shape) -> str | None:
    """Return the place of a shape in thirds of the picture, or None near a border of thirds."""
    for x, y in ((shape.x, shape.y), (shape.mass_x, shape.mass_y)):
        if any(abs(v - third) < PLACE_MARGIN for v in (x, y) for third in (1 / 3, 2 / 3)):
            return None
    column, row = int(shape.x * 3), int(shape.y * 3)
    if (column, row) != (int(shape.mass_x * 3), int(shape.mass_y * 3)):
        return None
    return PLACES[3 * row + column]


def with_article(noun: str) -> str:
    """Return "a" or "an" and the noun."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def questions(drawing: Drawing, rng: np.random.Generator) -> list[Question]:
    """Return a question of each kind that is fair to ask about a drawing.

    Args:
        drawing: the picture and its truth.
        rng: chooses the object and the phrasing.
    """

    def any_of(phrasings: tuple[str, ...]) -> str:
        return phrasings[rng.integers(len(phrasings))]

    unknown = Question("unknown", any_of(UNKNOWN_PROMPTS), UNKNOWN)
    if drawing.text is not None:
        word = f'The word "{drawing.text}" in {drawing.text_color}.'
        return [
            Question("text", any_of(TEXT), drawing.text),
            Question("describe", any_of(DESCRIBE), word),
            unknown,
        ]
    absent = _absent(drawing, rng)
    if not drawing.shapes:
        prompt, expected = NOTHING_IN_EMPTY[rng.integers(len(NOTHING_IN_EMPTY))]
        return [
            Question("nothing", prompt, expected),
            Question("is_there", any_of(IS_THERE).format(thing=absent), "No"),
            unknown,
        ]
    shapes = drawing.shapes
    names = Counter(shape.name for shape in shapes)
    colors = Counter(shape.color for shape in shapes)
    kinds = Counter((shape.color, shape.name) for shape in shapes)
    listed = ", ".join(f"{n} {color} {name}" for (color, name), n in kinds.items())
    found = [
        Question("describe", any_of(DESCRIBE), listed),
        Question("count", any_of(COUNT), str(len(shapes))),
        Question("nothing", any_of(TEXT), "no text"),
        unknown,
    ]
    for index in rng.permutation(len(shapes)):
        shape = shapes[index]
        asked = {question.kind for question in found}
        if "color" not in asked and names[shape.name] == 1:
            found.append(Question("color", any_of(COLOR).format(shape=shape.name), shape.color))
        if "shape" not in asked and colors[shape.color] == 1:
            found.append(Question("shape", any_of(SHAPE).format(color=shape.color), shape.name))
        where = place(shape)
        if "where" not in asked and where and kinds[shape.color, shape.name] == 1:
            thing = shape.name
            if names[shape.name] > 1 or rng.random() < 0.5:
                thing = f"{shape.color} {thing}"
            found.append(Question("where", any_of(WHERE).format(thing=thing), where))
    # Every empty picture is asked for an absent shape, so here "Yes" is the likelier answer.
    if rng.random() < 0.35:
        found.append(Question("is_there", any_of(IS_THERE).format(thing=absent), "No"))
    else:
        shape = shapes[rng.integers(len(shapes))]
        thing = shape.name if rng.random() < 0.3 else f"{shape.color} {shape.name}"
        found.append(
            Question("is_there", any_of(IS_THERE).format(thing=with_article(thing)), "Yes")
        )
    return found


def _absent(drawing: Drawing, rng: np.random.Generator) -> str:
    """Return an object that the picture lacks, with its article; often nearly there."""
    colors = {shape.color for shape in drawing.shapes}
    names = {shape.name for shape in drawing.shapes}
    present = {(shape.color, shape.name) for shape in drawing.shapes}
    choice = rng.random()
    if choice < 0.2:
        others = [name for name in SHAPES if name not in _alike(names | {"line"})]
        return with_article(others[rng.integers(len(others))])
    # Half of the pairs share the colour or the name with an object of the picture.
    pairs = [p for p in product(COLORS, SHAPES) if p not in present and p not in PAPER]
    pairs = [p for p in pairs if not any(c == p[0] and p[1] in _alike({n}) for c, n in present)]
    near = [p for p in pairs if (p[0] in colors) != (p[1] in names)]
    pool = near if near and choice < 0.6 else pairs
    color, name = pool[rng.integers(len(pool))]
    return with_article(f"{color} {name}")


def _alike(names: set[str]) -> set[str]:
    """Return the names, and the names that some people would give to the same shapes."""
    # A square is a rectangle, a circle is an oval, and a line is nearly a thin rectangle.
    families = ({"square", "rectangle", "line"}, {"circle", "oval"})
    return names.union(*(family for family in families if family & names))
