"""Draw outlines with a pen: filled, stroked, edged or hatched, steady or by hand."""

import math
import random
from dataclasses import dataclass
from itertools import pairwise

from PIL import Image, ImageChops, ImageDraw

from demo_data import outlines
from demo_data.colors import Rgb, luminance
from demo_data.outlines import Point, box_of


@dataclass(frozen=True)
class Pen:
    """The hand that draws the shapes of a picture.

    Attributes:
        picture: drawn on.
        unit: pixels of the picture per pixel of the 256 x 256 square.
        wobble: 0 for a drawing program, else the unsteadiness as a share of a shape's size.
        styles: one style; "mixed" draws another style for each shape.
    """

    rng: random.Random
    picture: Image.Image
    unit: float
    wobble: float
    styles: tuple[str, ...]

    def draw_shape(self, name: str, points: list[Point], color: Rgb, size: float) -> None:
        """Draw a shape of this outline and size in one of the pen's styles."""
        rng = self.rng
        style = self.styles[0]
        if style == "mixed":
            style = rng.choice(("filled", "outline", "edged", "hatched"))
        thinnest = max(1.5 * self.unit, 0.02 * size)
        thick = max(thinnest, size * rng.uniform(0.02, 0.11))
        if name == "line":
            self._draw_line(points, color, max(thinnest, size * rng.uniform(0.03, 0.09)))
        elif name in ("arrow", "cross") and style in ("outline", "hatched") and rng.random() < 0.7:
            self._draw_strokes(name, points, color, thick)
        elif style == "filled":
            ImageDraw.Draw(self.picture).polygon(points, fill=color)
        elif style == "edged":
            dark = luminance(color) > 70
            edge = (20, 20, 20) if dark else (240, 240, 240)
            ImageDraw.Draw(self.picture).polygon(points, fill=color)
            self._stroke(points, edge, min(thick, 0.05 * size + self.unit), is_closed=True)
        elif style == "hatched":
            self._hatch(points, color, size)
            self._stroke(points, color, thick, is_closed=True)
        else:
            self._stroke(points, color, thick, is_closed=True)

    def _draw_line(self, points: list[Point], color: Rgb, width: float) -> None:
        """A line from end to end of its outline."""
        ends = sorted(points, key=lambda p: math.dist(p, points[0]))
        start, end = ends[0], ends[-1]
        bend = outlines.dense([start, end], max(2.0, math.dist(start, end) / 24), is_closed=False)
        if self.wobble:
            bend = outlines.wobbled(self.rng, bend, self.wobble * math.dist(start, end) / 3)
        self._stroke(bend, color, width, is_closed=False)

    def _draw_strokes(self, name: str, points: list[Point], color: Rgb, thick: float) -> None:
        """An arrow or a cross of pen strokes in the place of its outline."""
        left, top, right, bottom = box_of(points)
        middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
        rng = self.rng
        if name == "cross":
            angle = rng.choice((0.0, math.pi / 4)) + rng.uniform(-0.2, 0.2)
            radius = min(right - left, bottom - top) / 2
            for turn in (angle, angle + math.pi / 2):
                dx, dy = radius * math.cos(turn), radius * math.sin(turn)
                ends = [(middle_x - dx, middle_y - dy), (middle_x + dx, middle_y + dy)]
                self._stroke(self._hand(ends), color, thick, is_closed=False)
            return
        # The tip is the point of an arrow's outline that is farthest from its middle.
        tip = max(points, key=lambda p: math.dist(p, (middle_x, middle_y)))
        tail = (2 * middle_x - tip[0], 2 * middle_y - tip[1])
        length = max(1.0, math.dist(tip, tail))
        angle = math.atan2(tip[1] - tail[1], tip[0] - tail[0])
        self._stroke(self._hand([tail, tip]), color, thick, is_closed=False)
        spread, barb = rng.uniform(0.4, 0.75), length * rng.uniform(0.22, 0.42)
        wings = [
            (tip[0] - barb * math.cos(angle + s), tip[1] - barb * math.sin(angle + s))
            for s in (spread, -spread)
        ]
        if rng.random() < 0.25:
            ImageDraw.Draw(self.picture).polygon([wings[0], tip, wings[1]], fill=color)
        self._stroke(self._hand([wings[0], tip]), color, thick, is_closed=False)
        self._stroke(self._hand([tip, wings[1]]), color, thick, is_closed=False)

    def _hand(self, ends: list[Point]) -> list[Point]:
        length = math.dist(ends[0], ends[-1])
        points = outlines.dense(ends, max(2.0, length / 12), is_closed=False)
        return (
            outlines.wobbled(self.rng, points, self.wobble * length / 2) if self.wobble else points
        )

    def _stroke(self, points: list[Point], color: Rgb, width: float, is_closed: bool) -> None:
        rng, draw = self.rng, ImageDraw.Draw(self.picture)
        line = [*points, points[0], points[1]] if is_closed else points
        if not self.wobble:
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
        left, top, right, bottom = (round(v) for v in box_of(points))
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


def draw_pen(rng: random.Random, picture: Image.Image, unit: float) -> Pen:
    if rng.random() < 0.6:
        styles = rng.choice((("filled",), ("filled",), ("outline",), ("edged",), ("mixed",)))
        return Pen(rng, picture, unit, rng.choice((0.0, 0.0, 0.006)), styles)
    styles = rng.choice((("outline",), ("filled",), ("hatched",), ("mixed",)))
    return Pen(rng, picture, unit, rng.uniform(0.008, 0.03), styles)
