"""Draw a picture and say truly what is in it.

Every picture is a function of one seed. Training takes seeds below HELD_OUT_SEED; held-out
pictures start there. Lengths are in pixels of the canvas unless a name says otherwise.
"""

import io
import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from demo_data import outlines, words
from demo_data.colors import WORD_CONTRAST, Rgb, contrasting, distance
from demo_data.grounds import Ground, draw_ground
from demo_data.lettering import font_layer, pen_layer
from demo_data.outlines import Point, box_of
from demo_data.pens import Pen, draw_pen

IMAGE_SIZE = 256
CELL = 64  # pixels of the square input per image token
SLOT = 32  # pixels of the square input per shape that the training head can name
HELD_OUT_SEED = 1_000_000_000
MAX_SHAPES = 6
NINTHS = 9  # of a picture, by thirds of its width and height
SMALLEST, LARGEST = 0.06, 0.9  # of the picture's shorter side
SMALLEST_PIXELS = 13  # of the square: smaller than that, a person cannot tell shapes apart either
KINDS = ("shapes", "text", "empty")
# Shapes that are taken for each other when they are small.
LOOKALIKES = (
    ("circle", "hexagon", "oval"),
    ("circle", "hexagon"),
    ("square", "rectangle", "hexagon"),
    ("arrow", "heart", "triangle", "star", "cross"),
    ("arrow", "line", "rectangle", "triangle"),
    ("oval", "rectangle", "hexagon"),
    ("star", "cross", "triangle"),
    ("square", "circle", "hexagon"),
)


@dataclass(frozen=True)
class Mark:
    """A shape or a character.

    Attributes:
        name: the shape's name, or the character.
        color: one of the eleven color names.
        across, down: its centre as a share of the picture's width and height.
        x, y: its centre in pixels of the padded 256 x 256 square.
    """

    name: str
    color: str
    across: float
    down: float
    x: float
    y: float

    @property
    def cell(self) -> int:
        """Index of the image token that covers the centre."""
        return int(self.y // CELL) * (IMAGE_SIZE // CELL) + int(self.x // CELL)

    @property
    def slot(self) -> int:
        """Index of the quarter of that image token that covers the centre."""
        return int(self.y // SLOT) % 2 * 2 + int(self.x // SLOT) % 2

    @property
    def ninth(self) -> int:
        """Index of the ninth of the picture that has the centre, row by row."""
        return min(2, int(self.down * 3)) * 3 + min(2, int(self.across * 3))


@dataclass(frozen=True)
class Sample:
    """One picture and its truth.

    Attributes:
        shapes: in reading order of their image tokens, which answers follow.
        characters: from left to right.
        has_edges: whether the picture's own edges show beside the black border.
    """

    picture: Image.Image
    shapes: tuple[Mark, ...]
    characters: tuple[Mark, ...]
    has_edges: bool

    @property
    def text(self) -> str:
        return "".join(mark.name for mark in self.characters)


def draw_sample(
    seed: int, max_shapes: int = MAX_SHAPES, kind: str | None = None, *, is_hard: bool = False
) -> Sample:
    """Draw picture number `seed`.

    Args:
        max_shapes: at most so many shapes; a word has at most one character more.
        kind: "shapes", "text" or "empty"; drawn by the seed when None.
        is_hard: shapes are small, easy to take for each other and overlap more often, and words
            are smaller and have more fonts and hands; for training.
    """
    rng = random.Random(seed)
    drawn = rng.choices(KINDS, (50, 45, 5))[0]
    kind = kind or drawn
    aspect = rng.choice((1.0, 1.0, 4 / 3, 3 / 4, 16 / 9, 2 / 3, rng.uniform(0.5, 2.0)))
    longer = rng.choice((160, 200, 256, 256, 320, 400, 512))
    if aspect >= 1:
        width, height = longer, max(80, round(longer / aspect))
    else:
        width, height = max(80, round(longer * aspect)), longer
    canvas = _Canvas(rng, width, height)
    if kind == "shapes":
        canvas.draw_shapes(_draw_count(rng, max_shapes), is_hard)
    elif kind == "text":
        canvas.draw_text(words.draw_word(rng, min(words.MAX_LENGTH, max_shapes + 1)), is_hard)
    return canvas.finish()


def _draw_count(rng: random.Random, max_shapes: int) -> int:
    counts = range(1, max_shapes + 1)
    return rng.choices(counts, (28, 22, 18, 14, 10, 8)[:max_shapes])[0]


class _Canvas:
    """A picture under way; `unit` is canvas pixels per pixel of the 256 x 256 square."""

    def __init__(self, rng: random.Random, width: int, height: int) -> None:
        self.rng = rng
        self.width, self.height = width, height
        self.shorter, self.longer = min(width, height), max(width, height)
        self.unit = self.longer / IMAGE_SIZE
        self.ground: Ground = draw_ground(rng, width, height)
        self.picture = self.ground.picture
        self.shapes: list[Mark] = []
        self._drawn_colors: list[Rgb] = []
        self.characters: list[Mark] = []
        self.smallest = float(IMAGE_SIZE)  # in pixels of the square; small things are not blurred

    def _mark(self, name: str, color: str, x: float, y: float) -> Mark:
        pad_x, pad_y = (self.longer - self.width) / 2, (self.longer - self.height) / 2
        return Mark(
            name,
            color,
            x / self.width,
            y / self.height,
            min(IMAGE_SIZE - 0.5, max(0.0, (x + pad_x) / self.unit)),
            min(IMAGE_SIZE - 0.5, max(0.0, (y + pad_y) / self.unit)),
        )

    def finish(self) -> Sample:
        picture = self._delivered()
        shapes = sorted(self.shapes, key=lambda mark: (mark.cell, mark.slot))
        has_edges = self.width == self.height or not self.ground.is_dark
        return Sample(picture, tuple(shapes), tuple(self.characters), has_edges)

    def _delivered(self) -> Image.Image:
        """Return the picture as a camera, a messenger or a small file leaves it."""
        rng, picture = self.rng, self.picture
        fine = self.smallest
        if rng.random() < 0.15:
            picture = ImageEnhance.Brightness(picture).enhance(rng.uniform(0.88, 1.1))
            picture = ImageEnhance.Contrast(picture).enhance(rng.uniform(0.85, 1.15))
        if rng.random() < 0.2 and fine > 22:
            radius = rng.uniform(0.3, min(2.2, fine / 32)) * self.unit
            picture = picture.filter(ImageFilter.GaussianBlur(radius))
        if rng.random() < 0.15 and fine > 36:
            size = rng.uniform(0.4, 0.8) / max(1.0, self.unit)
            small = picture.resize(
                (max(40, round(self.width * size)), max(40, round(self.height * size))),
                Image.Resampling.BILINEAR,
            )
            way = rng.choice((Image.Resampling.NEAREST, Image.Resampling.BICUBIC))
            picture = small.resize(picture.size, way) if rng.random() < 0.6 else small
        if rng.random() < 0.3:
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=rng.randint(25 if fine > 30 else 55, 92))
            picture = Image.open(file)
            picture.load()
        return picture

    # --- shapes ---------------------------------------------------------------------------

    def draw_shapes(self, count: int, is_hard: bool = False) -> None:
        rng = self.rng
        choice = rng.choice(LOOKALIKES) if is_hard else outlines.SHAPES
        pen = draw_pen(rng, self.picture, self.unit)
        may_overlap = rng.random() < (0.6 if is_hard else 0.3)
        owners = Image.new("L", (max(8, self.width // 3), max(8, self.height // 3)))
        kinds = [rng.choice(choice) for _ in range(count)]
        colors = [contrasting(rng, self.ground.colors) for _ in range(count)]
        if count > 1 and rng.random() < 0.25:  # some alike, to learn "two red circles"
            kinds = [rng.choice(kinds[:2]) for _ in kinds]
            if rng.random() < 0.6:
                colors = [rng.choice(colors[:2]) for _ in colors]
        largest = LARGEST if count == 1 else min(0.8, 1.35 / count**0.62)
        full: list[int] = []  # pixels of each shape in `owners` before others cover it
        boxes: list[tuple[float, float, float, float]] = []
        for name, (color_name, color) in zip(kinds, colors, strict=True):
            for _ in range(40):
                share = SMALLEST + (largest - SMALLEST) * rng.random() ** (2.5 if is_hard else 1.25)
                size = max(share * self.shorter, SMALLEST_PIXELS * self.unit)
                points = self._place(name, size, pen)
                if points is None:
                    continue
                box = box_of(points)
                visible = _clip(box, self.width, self.height)
                center = (visible[0] + visible[2]) / 2, (visible[1] + visible[3]) / 2
                mark = self._mark(name, color_name, *center)
                if any(m.cell == mark.cell and m.slot == mark.slot for m in self.shapes):
                    continue
                gap = 3 * self.unit
                if not may_overlap and any(_touch(box, other, gap) for other in boxes):
                    continue
                trial = owners.copy()
                scale = (trial.width / self.width, trial.height / self.height)
                small = [(x * scale[0], y * scale[1]) for x, y in points]
                ImageDraw.Draw(trial).polygon(small, fill=len(full) + 1, outline=len(full) + 1)
                seen = trial.histogram()
                if any(seen[k + 1] < 0.62 * pixels for k, pixels in enumerate(full)):
                    continue
                near = [*self.ground.colors]
                near += [
                    other
                    for other, b in zip(self._drawn_colors, boxes, strict=True)
                    if _touch(b, box, 0)
                ]
                if len(near) > len(self.ground.colors) and _contrast_fails(color, near):
                    continue
                owners = trial
                full.append(max(1, seen[len(full) + 1]))
                boxes.append(box)
                self._drawn_colors.append(color)
                self.shapes.append(mark)
                self.smallest = min(self.smallest, size / self.unit)
                pen.draw_shape(name, points, color, size)
                break

    def _place(self, name: str, size: float, pen: Pen) -> list[Point] | None:
        """Put an outline somewhere; None if too little of it would be seen."""
        rng = self.rng
        points = outlines.outline(rng, name)
        if pen.wobble and name != "line":
            points = outlines.dense(points, 0.04)
            points = outlines.wobbled(rng, points, pen.wobble)
        elif pen.wobble:
            points = outlines.wobbled(rng, outlines.dense(points, 0.04), pen.wobble / 4)
        upright = rng.random() < 0.5 and name not in ("arrow", "line", "oval", "rectangle")
        angle = math.radians(rng.uniform(-10, 10)) if upright else rng.uniform(0, 2 * math.pi)
        if name == "heart" and not upright:
            angle = math.radians(rng.uniform(-50, 50))
        if rng.random() < 0.3:
            angle = rng.choice((0.0, math.pi / 2)) if name != "triangle" else 0.0
        points = [(x * size, y * size) for x, y in outlines.turned(points, angle)]
        left, top, right, bottom = box_of(points)
        wide, high = right - left, bottom - top
        if rng.random() < 0.06:
            x = rng.uniform(-0.3 * wide, self.width - 0.7 * wide)
            y = rng.uniform(-0.3 * high, self.height - 0.7 * high)
        else:
            margin = 2 * self.unit
            if wide + 2 * margin > self.width or high + 2 * margin > self.height:
                return None
            x = rng.uniform(margin, self.width - margin - wide)
            y = rng.uniform(margin, self.height - margin - high)
        points = [(px - left + x, py - top + y) for px, py in points]
        seen = _clip(box_of(points), self.width, self.height)
        share = (seen[2] - seen[0]) * (seen[3] - seen[1]) / max(1e-6, wide * high)
        return points if share > 0.66 else None

    # --- words ----------------------------------------------------------------------------

    def draw_text(self, text: str, is_hard: bool = False) -> None:
        rng = self.rng
        color_name, color = contrasting(rng, self.ground.colors, WORD_CONTRAST)
        angle = rng.choice((0.0, 0.0, rng.uniform(-8, 8), rng.uniform(-22, 22)))
        if rng.random() < (0.4 if is_hard else 0.12) and text.upper() == text:
            layer, centers = pen_layer(rng, text, self.width, is_hard)
        else:
            layer, centers = font_layer(rng, text, self.width, is_hard)
        turned = layer.rotate(angle, Image.Resampling.BICUBIC, expand=True)
        share = min(
            (self.width - 4 * self.unit) / turned.width,
            (self.height - 4 * self.unit) / turned.height,
        )
        # Letters at least 9 % of the longer side high, unless the word is too long for that.
        smallest, largest = (0.2, 0.7) if is_hard else (0.35, 0.96)
        wanted = rng.uniform(smallest, largest) * self.width / turned.width
        tall = 0.09 * self.longer / (layer.height * 0.62)
        scale = min(share, max(wanted, tall))
        size = max(4, round(turned.width * scale)), max(4, round(turned.height * scale))
        way = Image.Resampling.BICUBIC if scale < 2 else Image.Resampling.BILINEAR
        mask = turned.resize(size, way)
        x = rng.uniform(2 * self.unit, max(2 * self.unit, self.width - size[0] - 2 * self.unit))
        y = rng.uniform(2 * self.unit, max(2 * self.unit, self.height - size[1] - 2 * self.unit))
        self.picture.paste(color, (round(x), round(y)), mask)
        turn = math.radians(-angle)
        for character, center in zip(text, centers, strict=True):
            dx, dy = center - layer.width / 2, 0.0
            place_x = (dx * math.cos(turn) - dy * math.sin(turn)) * scale + size[0] / 2 + x
            place_y = (dx * math.sin(turn) + dy * math.cos(turn)) * scale + size[1] / 2 + y
            self.characters.append(self._mark(character, color_name, place_x, place_y))
        self.smallest = layer.height * 0.5 * scale / self.unit


def _contrast_fails(color: Rgb, near: list[Rgb]) -> bool:
    return any(distance(color, other) < 90 for other in near)


def _clip(
    box: tuple[float, float, float, float], width: float, height: float
) -> tuple[float, float, float, float]:
    return max(0.0, box[0]), max(0.0, box[1]), min(width, box[2]), min(height, box[3])


def _touch(
    first: tuple[float, float, float, float], second: tuple[float, float, float, float], gap: float
) -> bool:
    return (
        first[0] < second[2] + gap
        and second[0] < first[2] + gap
        and first[1] < second[3] + gap
        and second[1] < first[3] + gap
    )


def to_square(picture: Image.Image) -> np.ndarray:
    """uint8 [3, 256, 256]: padded with black, Pillow bicubic, as predict.py does."""
    side = max(picture.size)
    square = Image.new("RGB", (side, side))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    resized = square.resize((IMAGE_SIZE,) * 2, Image.Resampling.BICUBIC)
    return np.asarray(resized).transpose(2, 0, 1)
