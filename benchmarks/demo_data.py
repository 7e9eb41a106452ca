"""The pictures, questions and answers that the built-in model is trained and measured on.

Pillow and the standard library only, so accuracy can be measured where there is no torch. Every
picture is a function of one seed: training takes seeds below HELD_OUT_SEED, held-out pictures
start there.
"""

import math
import random
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

IMAGE_SIZE = 256
CELL = 64  # pixels of the square input per image token
HELD_OUT_SEED = 1_000_000_000

SHAPES = ("circle", "square", "triangle", "star", "cross")
SHAPE_COLORS = {
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (240, 215, 50),
    "green": (40, 160, 60),
    "blue": (45, 85, 220),
    "purple": (140, 55, 180),
}
TEXT_COLORS = SHAPE_COLORS | {"black": (10, 10, 10), "white": (245, 245, 245)}
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
NUMBER_WORDS = ("no", "one", "two", "three", "four")
WORDS = (
    "ACE AGE AIR ARM ART BAG BALL BAND BANK BAR BED BEE BELL BIRD BLUE BOAT BOOK BOX BOY BUS CAB "
    "CAFE CAKE CAP CAR CARD CAT CITY CLUB COAT CODE COLD COOK CORN COW CUP DAY DEER DESK DISH DOG "
    "DOOR DUCK DUST EAR EAST EGG EXIT EYE FACE FARM FILM FIRE FISH FLAG FOOD FOX FROG FUN GAME "
    "GATE GIFT GO GOLD GYM HAND HAT HELP HILL HOME HOT HOUR ICE IN INK IRON JAM JAZZ JOB JOY JUMP "
    "KEY KID KING KITE LAKE LAMP LEAF LIME LION MAP MAZE MENU MILK MOON MUD NEST NEW NO NORD NUT "
    "OAK OFF OIL ON OPEN OUT OWL OX PARK PEN PIG POOL PUB PULL PUSH QUAY QUIZ RAIN RED RICE RING "
    "ROAD ROSE RUN SALE SEA SHIP SHOP SIX SKY SNOW SONG STAR STOP SUN TAXI TEA TEN TIME TOY TREE "
    "UP URN USE VAN VASE VIEW WAVE WEST WIND WOLF YARD YES ZERO ZONE ZOO"
).split()

Kind = Literal["describe", "count", "color", "shape", "text"]
KINDS: tuple[Kind, ...] = ("describe", "count", "color", "shape", "text")


@dataclass(frozen=True)
class Mark:
    """A shape or a character, its centre in pixels of the padded 256 x 256 square."""

    name: str
    color: str
    x: float
    y: float

    @property
    def cell(self) -> int:
        """Index of the image token that covers the centre."""
        return int(self.y // CELL) * (IMAGE_SIZE // CELL) + int(self.x // CELL)


@dataclass(frozen=True)
class Sample:
    """One picture; marks are in reading order of their image tokens, which answers follow."""

    picture: Image.Image
    shapes: tuple[Mark, ...]
    characters: tuple[Mark, ...]

    @property
    def text(self) -> str:
        return "".join(mark.name for mark in self.characters)


@dataclass(frozen=True)
class Question:
    kind: Kind
    prompt: str
    answer: str


def draw_sample(seed: int, max_shapes: int = 4, kind: str | None = None) -> Sample:
    """Draw picture number `seed`.

    Args:
        max_shapes: at most so many shapes (1 to 4) or characters; training starts with 1.
        kind: "shapes" or "text"; drawn by the seed when None.
    """
    rng = random.Random(seed)
    if kind is None:
        kind = "shapes" if rng.random() < 0.5 else "text"
    aspect = rng.choice((1.0, 1.0, 4 / 3, 3 / 4, 16 / 9, 2 / 3, rng.uniform(0.6, 1.7)))
    longer = rng.choice((256, 320, 400, 512))
    width, height = (
        (longer, round(longer / aspect)) if aspect >= 1 else (round(longer * aspect), longer)
    )
    canvas = _Canvas(rng, width, height)
    if kind == "shapes":
        return canvas.draw_shapes(rng.randint(1, max_shapes))
    return canvas.draw_text(_draw_word(rng, max_shapes))


def _draw_word(rng: random.Random, max_length: int) -> str:
    kind = rng.random()
    if kind < 0.3:
        return rng.choice([word for word in WORDS if len(word) <= max_length] or ["A"])
    length = rng.randint(1, max_length)
    alphabet = CHARACTERS[26:] if kind < 0.6 else CHARACTERS[:26]
    return "".join(rng.choices(alphabet, k=length))


class _Canvas:
    """A picture under way; `unit` is canvas pixels per pixel of the 256 x 256 square."""

    def __init__(self, rng: random.Random, width: int, height: int) -> None:
        self.rng = rng
        self.unit = max(width, height) / IMAGE_SIZE
        self.width, self.height = width / self.unit, height / self.unit
        self.pad_x, self.pad_y = (IMAGE_SIZE - self.width) / 2, (IMAGE_SIZE - self.height) / 2
        self.pixels = (width, height)

    def _colors(self, names: list[str]) -> tuple[tuple[int, int, int], list[tuple[int, int, int]]]:
        """A greyish background and a jittered colour each, far enough apart in luminance."""
        rng = self.rng
        while True:
            colors = [
                tuple(min(255, max(0, c + rng.randint(-14, 14))) for c in TEXT_COLORS[name])
                for name in names
            ]
            grey = rng.randint(0, 255)
            background = tuple(min(255, max(0, grey + rng.randint(-12, 12))) for _ in range(3))
            if all(abs(_luminance(c) - _luminance(background)) > 40 for c in colors):
                return background, colors  # type: ignore[return-value]

    def _mark(self, name: str, color: str, x: float, y: float) -> Mark:
        return Mark(name, color, x + self.pad_x, y + self.pad_y)

    def draw_shapes(self, count: int) -> Sample:
        rng = self.rng
        placed: list[tuple[Mark, float]] = []
        names = [rng.choice(tuple(SHAPE_COLORS)) for _ in range(count)]
        background, colors = self._colors(names)
        picture = Image.new("RGB", self.pixels, background)
        draw = ImageDraw.Draw(picture)
        for color_name, color in zip(names, colors, strict=True):
            for _ in range(60):
                radius = rng.uniform(15, 36)
                x = rng.uniform(radius + 2, self.width - radius - 2)
                y = rng.uniform(radius + 2, self.height - radius - 2)
                mark = self._mark(rng.choice(SHAPES), color_name, x, y)
                if all(
                    other.cell != mark.cell
                    and math.dist((other.x, other.y), (mark.x, mark.y)) > radius + r + 3
                    for other, r in placed
                ):
                    placed.append((mark, radius))
                    _draw_shape(draw, mark.name, color, x, y, radius, self.unit, rng)
                    break
        shapes = sorted((mark for mark, _ in placed), key=lambda mark: mark.cell)
        return Sample(picture, tuple(shapes), ())

    def draw_text(self, text: str) -> Sample:
        rng = self.rng
        color_name = rng.choice(tuple(TEXT_COLORS))
        background, (color,) = self._colors([color_name])
        picture = Image.new("RGB", self.pixels, background)
        draw = ImageDraw.Draw(picture)
        size = rng.uniform(46, 84)
        while True:
            font = ImageFont.load_default(size * self.unit)
            # Evenly readable at 64 pixels a token: letters at least half a token apart.
            steps = [max(font.getlength(c) / self.unit * 1.04, 34.0) for c in text]
            if sum(steps) <= self.width - 8 and size <= self.height - 8:
                break
            size *= 0.92
        x = rng.uniform(4, self.width - 4 - sum(steps))
        y = rng.uniform(size / 2 + 4, self.height - size / 2 - 4)
        characters = []
        for character, step in zip(text, steps, strict=True):
            center = x + step / 2
            draw.text(
                (center * self.unit, y * self.unit), character, fill=color, font=font, anchor="mm"
            )
            characters.append(self._mark(character, color_name, center, y))
            x += step
        return Sample(picture, (), tuple(characters))


def _luminance(color: tuple[int, ...]) -> float:
    return 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]


def _draw_shape(
    draw: ImageDraw.ImageDraw,
    name: str,
    color: tuple[int, int, int],
    x: float,
    y: float,
    radius: float,
    unit: float,
    rng: random.Random,
) -> None:
    x, y, radius = x * unit, y * unit, radius * unit
    turn = math.radians(rng.uniform(-12, 12))

    def ring(corners: int, inner: float | None = None, start: float = -math.pi / 2) -> None:
        count = corners if inner is None else 2 * corners
        points = []
        for k in range(count):
            r = radius if inner is None or k % 2 == 0 else radius * inner
            angle = start + turn + 2 * math.pi * k / count
            points.append((x + r * math.cos(angle), y + r * math.sin(angle)))
        draw.polygon(points, fill=color)

    if name == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
    elif name == "square":
        ring(4, start=math.pi / 4)
    elif name == "triangle":
        ring(3)
    elif name == "star":
        ring(5, inner=0.42)
    else:
        bar = radius * 0.34
        for along, across in ((radius, bar), (bar, radius)):
            corners = ((-along, -across), (along, -across), (along, across), (-along, across))
            draw.polygon(
                [
                    (
                        x + a * math.cos(turn) - b * math.sin(turn),
                        y + a * math.sin(turn) + b * math.cos(turn),
                    )
                    for a, b in corners
                ],
                fill=color,
            )


# --- questions ---------------------------------------------------------------------------------

DESCRIBE = ("Describe the image.", "Describe this picture.", "What is in the image?")
COUNT = ("How many shapes are there?", "How many shapes do you see?", "Count the shapes.")
READ = ("What is written in the image?", "Read the text.", "What does the image say?")
COLOR = (
    "What color is the {}?",
    "Which color is the {}?",
    "What is the color of the {}?",
)
SHAPE = ("What shape is {}?", "Which shape is {}?", "What is the shape in {}?")


def describe(sample: Sample) -> str:
    """The answer to "Describe the image."."""
    if sample.characters:
        noun = "number" if sample.text.isdigit() else "word"
        return f'The {noun} "{sample.text}" in {sample.characters[0].color}.'
    parts = [
        f"{'an' if mark.color == 'orange' else 'a'} {mark.color} {mark.name}"
        for mark in sample.shapes
    ]
    sentence = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"{sentence[0].upper()}{sentence[1:]}."


def count(sample: Sample) -> str:
    number = len(sample.shapes)
    return (
        f"There {'is' if number == 1 else 'are'} {NUMBER_WORDS[number]} shape{'s'[number == 1 :]}."
    )


def ask(sample: Sample, rng: random.Random) -> list[Question]:
    """Every kind of question this picture can be asked, one phrasing each, in random order."""
    questions = [
        Question("describe", rng.choice(DESCRIBE), describe(sample)),
        Question("count", rng.choice(COUNT), count(sample)),
    ]
    if sample.characters:
        questions += [Question("text", prompt, sample.text) for prompt in rng.sample(READ, 2)]
    names = [mark.name for mark in sample.shapes]
    colors = [mark.color for mark in sample.shapes]
    for mark in sample.shapes:
        if names.count(mark.name) == 1:
            prompt = rng.choice(COLOR).format(mark.name)
            questions.append(Question("color", prompt, f"The {mark.name} is {mark.color}."))
        if colors.count(mark.color) == 1:
            prompt = rng.choice(SHAPE).format(mark.color)
            questions.append(Question("shape", prompt, f"The {mark.color} shape is a {mark.name}."))
    rng.shuffle(questions)
    return questions


def held_out(kind: Kind, number: int) -> list[tuple[Sample, Question]]:
    """The first `number` held-out pictures that can be asked a question of this kind."""
    pairs: list[tuple[Sample, Question]] = []
    seed = HELD_OUT_SEED + KINDS.index(kind) * 1_000_000
    while len(pairs) < number:
        sample = draw_sample(seed, kind="text" if kind == "text" else "shapes")
        questions = [q for q in ask(sample, random.Random(seed)) if q.kind == kind]
        if questions:
            pairs.append((sample, questions[0]))
        seed += 1
    return pairs


def attributes(answer: str) -> list[str]:
    """Colour and shape words of a description, in order: what it is judged by."""
    words = answer.lower().replace(",", " ").replace(".", " ").split()
    return [word for word in words if word in SHAPE_COLORS or word in SHAPES]
