"""Draw a picture and say truly what is in it.

Every picture is a function of one seed. Training takes seeds below HELD_OUT_SEED; held-out
pictures start there. Lengths are in pixels of the canvas unless a name says otherwise.
"""

import io
import math
import random
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter

from demo_data import outlines, words
from demo_data.colors import WORD_CONTRAST, Rgb, contrasting, distance, luminance
from demo_data.grounds import Ground, draw_ground
from demo_data.outlines import Point
from demo_data.stroke_letters import letter

IMAGE_SIZE = 256
CELL = 64  # pixels of the square input per image token
SLOT = 32  # pixels of the square input per shape that the training head can name
HELD_OUT_SEED = 1_000_000_000
MAX_SHAPES = 6
SMALLEST, LARGEST = 0.06, 0.9  # of the picture's shorter side
SMALLEST_PIXELS = 13  # of the square: smaller than that, a person cannot tell shapes apart either
KINDS = ("shapes", "text", "empty")


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


def draw_sample(seed: int, max_shapes: int = MAX_SHAPES, kind: str | None = None) -> Sample:
    """Draw picture number `seed`.

    Args:
        max_shapes: at most so many shapes; a word has at most one character more.
        kind: "shapes", "text" or "empty"; drawn by the seed when None.
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
        canvas.draw_shapes(_draw_count(rng, max_shapes))
    elif kind == "text":
        canvas.draw_text(words.draw_word(rng, min(words.MAX_LENGTH, max_shapes + 1)))
    return canvas.finish()


def _draw_count(rng: random.Random, max_shapes: int) -> int:
    counts = range(1, max_shapes + 1)
    return rng.choices(counts, (28, 22, 18, 14, 10, 8)[:max_shapes])[0]


@dataclass(frozen=True)
class _Pen:
    """How a picture's shapes are drawn: `wobble` is 0 for a drawing program."""

    wobble: float
    styles: tuple[str, ...]


def _draw_pen(rng: random.Random) -> _Pen:
    if rng.random() < 0.6:
        styles = rng.choice((("filled",), ("filled",), ("outline",), ("edged",), ("mixed",)))
        return _Pen(rng.choice((0.0, 0.0, 0.006)), styles)
    styles = rng.choice((("outline",), ("filled",), ("hatched",), ("mixed",)))
    return _Pen(rng.uniform(0.008, 0.03), styles)


class _Canvas:
    """A picture under way; `unit` is canvas pixels per pixel of the 256 x 256 square."""

    def __init__(self, rng: random.Random, width: int, height: int) -> None:
        self.rng = rng
        self.width, self.height = width, height
        self.shorter, self.longer = min(width, height), max(width, height)
        self.unit = self.longer / IMAGE_SIZE
        self.ground: Ground = draw_ground(rng, width, height)
        self.picture = self.ground.picture
        self.draw = ImageDraw.Draw(self.picture)
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

    def draw_shapes(self, count: int) -> None:
        rng = self.rng
        pen = _draw_pen(rng)
        may_overlap = rng.random() < 0.3
        owners = Image.new("L", (max(8, self.width // 3), max(8, self.height // 3)))
        kinds = [rng.choice(outlines.SHAPES) for _ in range(count)]
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
                share = SMALLEST + (largest - SMALLEST) * rng.random() ** 1.25
                size = max(share * self.shorter, SMALLEST_PIXELS * self.unit)
                points = self._place(name, size, pen)
                if points is None:
                    continue
                box = _box(points)
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
                self._draw_outline(name, points, color, size, pen)
                break

    def _place(self, name: str, size: float, pen: _Pen) -> list[Point] | None:
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
        left, top, right, bottom = _box(points)
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
        seen = _clip(_box(points), self.width, self.height)
        share = (seen[2] - seen[0]) * (seen[3] - seen[1]) / max(1e-6, wide * high)
        return points if share > 0.66 else None

    def _draw_outline(
        self, name: str, points: list[Point], color: Rgb, size: float, pen: _Pen
    ) -> None:
        rng = self.rng
        style = pen.styles[0]
        if style == "mixed":
            style = rng.choice(("filled", "outline", "edged", "hatched"))
        thinnest = max(1.5 * self.unit, 0.02 * size)
        thick = max(thinnest, size * rng.uniform(0.02, 0.11))
        if name == "line":
            self._draw_line(points, color, max(thinnest, size * rng.uniform(0.03, 0.09)), pen)
        elif name in ("arrow", "cross") and style in ("outline", "hatched") and rng.random() < 0.7:
            self._draw_strokes(name, points, color, thick, pen)
        elif style == "filled":
            self.draw.polygon(points, fill=color)
        elif style == "edged":
            dark = luminance(color) > 70
            edge = (20, 20, 20) if dark else (240, 240, 240)
            self.draw.polygon(points, fill=color)
            self._stroke(points, edge, min(thick, 0.05 * size + self.unit), pen, is_closed=True)
        elif style == "hatched":
            self._hatch(points, color, size)
            self._stroke(points, color, thick, pen, is_closed=True)
        else:
            self._stroke(points, color, thick, pen, is_closed=True)

    def _draw_line(self, points: list[Point], color: Rgb, width: float, pen: _Pen) -> None:
        """A line from end to end of its outline."""
        ends = sorted(points, key=lambda p: math.dist(p, points[0]))
        start, end = ends[0], ends[-1]
        bend = outlines.dense([start, end], max(2.0, math.dist(start, end) / 24), is_closed=False)
        if pen.wobble:
            bend = outlines.wobbled(self.rng, bend, pen.wobble * math.dist(start, end) / 3)
        self._stroke(bend, color, width, pen, is_closed=False)

    def _draw_strokes(
        self, name: str, points: list[Point], color: Rgb, thick: float, pen: _Pen
    ) -> None:
        """An arrow or a cross of pen strokes in the place of its outline."""
        left, top, right, bottom = _box(points)
        middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
        rng = self.rng
        if name == "cross":
            angle = rng.choice((0.0, math.pi / 4)) + rng.uniform(-0.2, 0.2)
            radius = min(right - left, bottom - top) / 2
            for turn in (angle, angle + math.pi / 2):
                dx, dy = radius * math.cos(turn), radius * math.sin(turn)
                ends = [(middle_x - dx, middle_y - dy), (middle_x + dx, middle_y + dy)]
                self._stroke(self._hand(ends, pen), color, thick, pen, is_closed=False)
            return
        # The tip is the point of an arrow's outline that is farthest from its middle.
        tip = max(points, key=lambda p: math.dist(p, (middle_x, middle_y)))
        tail = (2 * middle_x - tip[0], 2 * middle_y - tip[1])
        length = max(1.0, math.dist(tip, tail))
        angle = math.atan2(tip[1] - tail[1], tip[0] - tail[0])
        self._stroke(self._hand([tail, tip], pen), color, thick, pen, is_closed=False)
        spread, barb = rng.uniform(0.4, 0.75), length * rng.uniform(0.22, 0.42)
        wings = [
            (tip[0] - barb * math.cos(angle + s), tip[1] - barb * math.sin(angle + s))
            for s in (spread, -spread)
        ]
        if rng.random() < 0.25:
            self.draw.polygon([wings[0], tip, wings[1]], fill=color)
        self._stroke(self._hand([wings[0], tip], pen), color, thick, pen, is_closed=False)
        self._stroke(self._hand([tip, wings[1]], pen), color, thick, pen, is_closed=False)

    def _hand(self, ends: list[Point], pen: _Pen) -> list[Point]:
        length = math.dist(ends[0], ends[-1])
        points = outlines.dense(ends, max(2.0, length / 12), is_closed=False)
        return outlines.wobbled(self.rng, points, pen.wobble * length / 2) if pen.wobble else points

    def _stroke(
        self, points: list[Point], color: Rgb, width: float, pen: _Pen, is_closed: bool
    ) -> None:
        rng, draw = self.rng, self.draw
        line = [*points, points[0], points[1]] if is_closed else points
        if not pen.wobble:
            draw.line(line, fill=color, width=max(1, round(width)), joint="curve")
        else:
            if is_closed and rng.random() < 0.4:  # a hand stops early or goes on too far
                cut = max(1, len(points) // 24)
                line = (
                    line[: len(line) - rng.randint(1, cut) - 1]
                    if rng.random() < 0.5
                    else [
                        *points,
                        *points[: 1 + cut],
                    ]
                )
            line = outlines.dense(line, max(3.0, width), is_closed=False)
            phase, swing = rng.uniform(0, 6.28), rng.uniform(0, 0.3)
            for k, (start, end) in enumerate(pairwise(line)):
                here = max(1, round(width * (1 + swing * math.sin(phase + 0.35 * k))))
                draw.line((start, end), fill=color, width=here)
                if here > 2:
                    r = here / 2
                    draw.ellipse((end[0] - r, end[1] - r, end[0] + r, end[1] + r), fill=color)
        if not is_closed or width > 3:
            r = width / 2
            for x, y in (line[0], line[-1]):
                draw.ellipse((x - r, y - r, x + r, y + r), fill=color)

    def _hatch(self, points: list[Point], color: Rgb, size: float) -> None:
        """Fill an outline with parallel strokes of a pen."""
        rng = self.rng
        left, top, right, bottom = (round(v) for v in _box(points))
        wide, high = max(2, right - left), max(2, bottom - top)
        inside = Image.new("L", (wide, high))
        ImageDraw.Draw(inside).polygon([(x - left, y - top) for x, y in points], fill=255)
        lines = Image.new("L", (wide, high))
        draw = ImageDraw.Draw(lines)
        width = max(1.2 * self.unit, size * rng.uniform(0.02, 0.06))
        step = width * rng.uniform(1.2, 2.6)
        angle = rng.uniform(0, math.pi)
        reach = math.hypot(wide, high) / 2
        dx, dy = math.cos(angle), math.sin(angle)
        offset = -reach
        zigzag: list[Point] = []
        while offset < reach:
            x, y = wide / 2 - dy * offset, high / 2 + dx * offset
            ends = [(x - dx * reach, y - dy * reach), (x + dx * reach, y + dy * reach)]
            zigzag += ends if len(zigzag) % 4 == 0 else ends[::-1]
            offset += step * rng.uniform(0.7, 1.3)
        draw.line(zigzag, fill=255, width=max(1, round(width)))
        mask = ImageChops.multiply(inside, lines)
        self.picture.paste(color, (left, top), mask)

    # --- words ----------------------------------------------------------------------------

    def draw_text(self, text: str) -> None:
        rng = self.rng
        color_name, color = contrasting(rng, self.ground.colors, WORD_CONTRAST)
        angle = rng.choice((0.0, 0.0, rng.uniform(-8, 8), rng.uniform(-22, 22)))
        if rng.random() < 0.12 and text.upper() == text:
            layer, centers = self._pen_layer(text)
        else:
            layer, centers = self._font_layer(text)
        turned = layer.rotate(angle, Image.Resampling.BICUBIC, expand=True)
        share = min(
            (self.width - 4 * self.unit) / turned.width,
            (self.height - 4 * self.unit) / turned.height,
        )
        # Letters at least 9 % of the longer side high, unless the word is too long for that.
        wanted = rng.uniform(0.35, 0.96) * self.width / turned.width
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

    def _font_layer(self, text: str) -> tuple[Image.Image, list[float]]:
        """The word as an "L" mask that is tight around it, and each character's centre."""
        rng = self.rng
        # Drawn near its final size, so that thin strokes stay sharp.
        guess = min(140.0, max(22.0, self.width * rng.uniform(0.5, 0.9) / (0.6 * len(text) + 0.2)))
        font = words.load_font(words.draw_font(rng, text), round(guess / 6) * 6)
        spacing = rng.choice((0.0, 0.0, 0.0, rng.uniform(0, 0.3))) * guess
        edges = [font.getlength(text[:k]) + spacing * k for k in range(len(text) + 1)]
        ascent, descent = font.getmetrics()
        pad = round(guess * 0.2)
        layer = Image.new("L", (round(edges[-1]) + 2 * pad, ascent + descent + 2 * pad))
        draw = ImageDraw.Draw(layer)
        bold = rng.choice((0, 0, 0, 1)) if guess > 40 else 0
        if spacing:
            for character, left in zip(text, edges, strict=False):
                draw.text((pad + left, pad), character, fill=255, font=font, stroke_width=bold)
        else:
            draw.text((pad, pad), text, fill=255, font=font, stroke_width=bold)
        box = layer.getbbox() or (0, 0, layer.width, layer.height)
        layer = layer.crop(box)
        centers = [
            pad + (a + b - (spacing if spacing else 0)) / 2 - box[0] for a, b in pairwise(edges)
        ]
        return layer, centers

    def _pen_layer(self, text: str) -> tuple[Image.Image, list[float]]:
        """The same, written with a pen."""
        rng = self.rng
        size = min(110.0, max(20.0, self.width * 0.7 / (1.35 * len(text))))
        thick = size * rng.uniform(0.07, 0.2)
        pad = round(thick + 0.3 * size)
        wobble = rng.choice((0.0, 0.02, 0.04))
        x = float(pad)
        strokes: list[list[Point]] = []
        centers = []
        for character in text:
            lines, wide = letter(character)
            shift = rng.uniform(-1, 1) * wobble * 2
            grow = 1 + rng.uniform(-1, 1) * wobble * 3
            for line in lines:
                placed = [
                    ((px * grow) * size + x, (py * grow + shift) * size + pad) for px, py in line
                ]
                dense = outlines.dense(placed, size / 5, is_closed=False)
                strokes.append(outlines.wobbled(rng, dense, wobble * size) if wobble else dense)
            centers.append(x + wide * size / 2)
            x += (wide + rng.uniform(0.3, 0.5)) * size + thick
        layer = Image.new("L", (round(x) + pad, round(1.6 * size) + 2 * pad))
        draw = ImageDraw.Draw(layer)
        for stroke in strokes:
            draw.line(stroke, fill=255, width=max(1, round(thick)), joint="curve")
            r = thick / 2
            for px, py in (stroke[0], stroke[-1]):
                draw.ellipse((px - r, py - r, px + r, py + r), fill=255)
        box = layer.getbbox() or (0, 0, layer.width, layer.height)
        return layer.crop(box), [center - box[0] for center in centers]


def _contrast_fails(color: Rgb, near: list[Rgb]) -> bool:
    return any(distance(color, other) < 90 for other in near)


def _box(points: list[Point]) -> tuple[float, float, float, float]:
    return (
        min(x for x, _ in points),
        min(y for _, y in points),
        max(x for x, _ in points),
        max(y for _, y in points),
    )


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
