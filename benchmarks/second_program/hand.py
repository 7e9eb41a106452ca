"""Pictures drawn stroke by stroke, as with a pen: shapes, pairs of shapes and words."""

from collections.abc import Sequence

import numpy as np
from shapely import affinity
from shapely.geometry import LineString, Polygon

from second_program import grounds
from second_program.canvas import Canvas, Drawing, picture_size
from second_program.colors import COLORS, PALETTE, css, stands_out
from second_program.outlines import (
    SHAPES,
    Edge,
    resampled,
    rotated,
    silhouette,
    unit_outline,
    usual_rotation,
    wobbled,
)
from second_program.pictures import composed

# Capital letters as polylines: x 0 .. 4 to the right, y 0 .. 6 down; strokes are separated by "/".
LETTERS = {
    "A": "0,6 2,0 4,6/0.8,4 3.2,4",
    "B": "0,0 0,6/0,0 2.6,0.1 3.3,1.4 2.6,2.7 0,2.9 2.9,3 3.8,4.4 2.8,5.9 0,6",
    "C": "3.8,1 2.6,0 1.2,0.2 0.2,1.8 0.1,4 1.1,5.7 2.6,6 3.8,5.1",
    "D": "0,0 0,6/0,0 2.2,0.3 3.8,2 3.8,4 2.3,5.8 0,6",
    "E": "3.6,0 0,0 0,6 3.7,6/0,2.9 2.9,2.9",
    "F": "3.7,0 0,0 0,6/0,2.9 2.9,2.9",
    "G": "3.8,1 2.6,0 1.2,0.2 0.2,1.8 0.1,4 1.1,5.7 2.6,6 3.8,5.1 3.8,3.3 2.3,3.3",
    "H": "0,0 0,6/4,0 4,6/0,3 4,3",
    "I": "2,0 2,6/0.9,0 3.1,0/0.9,6 3.1,6",
    "J": "3,0 3,4.6 2.2,5.9 1,5.8 0.2,4.7",
    "K": "0,0 0,6/3.6,0 0,3.3/1,2.5 3.8,6",
    "L": "0,0 0,6 3.5,6",
    "M": "0,6 0.3,0 2.2,4 4.1,0 4.5,6",
    "N": "0,6 0,0 3.8,6 3.8,0",
    "O": "2,0 0.7,0.6 0,2.2 0,3.9 0.8,5.5 2,6 3.3,5.5 4,3.9 4,2.2 3.3,0.6 2,0",
    "P": "0,6 0,0 2.6,0.1 3.6,1.5 2.7,3 0,3.2",
    "R": "0,6 0,0 2.6,0.1 3.5,1.5 2.7,2.9 0,3.1/1.3,3.1 3.8,6",
    "S": "3.5,0.8 2.3,0 0.8,0.4 0.3,1.6 1.1,2.7 2.9,3.3 3.6,4.5 2.9,5.7 1.5,6 0.2,5.2",
    "T": "0,0 4,0/2,0 2,6",
    "U": "0,0 0,4.2 0.8,5.7 2,6 3.2,5.7 4,4.2 4,0",
    "V": "0,0 2,6 4,0",
    "W": "0,0 1.1,6 2.3,1.6 3.5,6 4.6,0",
    "X": "0,0 4,6/4,0 0,6",
    "Y": "0,0 2,2.9 4,0/2,2.9 2,6",
    "Z": "0,0 3.9,0 0,6 4,6",
}
WORDS = (
    "CAT",
    "SUN",
    "HELP",
    "MILK",
    "TEA",
    "FISH",
    "HOME",
    "STAR",
    "BED",
    "TRAIN",
    "EXIT",
    "LAMP",
)


def hand_picture(rng: np.random.Generator) -> Drawing:
    """Draw a shape (50 %), two shapes (30 %) or a word (20 %) on paper or on a board."""
    choice = rng.random()
    while True:
        width, height = picture_size(rng)
        if max(width, height) < 300:
            continue
        if choice < 0.2:
            found = _word(width, height, rng)
        else:
            found = _shapes(width, height, 1 if choice < 0.7 else 2, rng)
        if found is not None:
            return found


def _ground(width: int, height: int, rng: np.random.Generator) -> Canvas:
    while True:
        canvas = Canvas(grounds.ground(width, height, rng))
        levels = canvas.ground_lab(canvas.frame)[:, 0]
        # Paper and whiteboards, or blackboards; a pen does not write on the rest.
        if levels.min() > 88 or levels.max() < 28:
            return canvas


def _pen(canvas: Canvas, rng: np.random.Generator) -> str | None:
    """Return the name of an unused colour that stands out as a stroke."""
    ground = canvas.ground_lab(canvas.frame)
    names = [
        name
        for name in COLORS
        if name not in canvas.colors and stands_out(PALETTE[name][0], ground, True)
    ]
    return names[rng.integers(len(names))] if names else None


def _shapes(width: int, height: int, number: int, rng: np.random.Generator) -> Drawing | None:
    canvas = _ground(width, height, rng)
    for index in range(number):
        name, color = SHAPES[rng.integers(len(SHAPES))], _pen(canvas, rng)
        if color is None:
            return None
        size = canvas.shorter * rng.uniform(0.3, 0.85 if number == 1 else 0.45)
        pen = max(size * rng.uniform(0.02, 0.05), 2.6 * canvas.longer / 256)
        edges = rotated(unit_outline(name, rng, 0.26), usual_rotation(name, rng))
        if name == "line":
            angle = rng.uniform(0, np.pi)
            half = np.array([np.cos(angle), np.sin(angle)]) / 2
            edges = [np.array([-half, half])]
        unsteady = 0.008 if name in ("square", "rectangle", "hexagon") else 0.014
        edges = (
            [e * size for e in wobbled(edges, unsteady, rng)]
            if name != "line"
            else [edges[0] * size]
        )
        points = edges[0] if name == "line" else silhouette(edges)
        half_box = (points.max(0) - points.min(0)) / 2 + 2 * pen
        space = np.array([width, height]) - 2 * half_box
        if (space <= 0).any():
            return None
        center = half_box + rng.random(2) * space - (points.max(0) + points.min(0)) / 2
        edges = [edge + center for edge in edges]
        path = LineString(edges[0]) if name == "line" else Polygon(silhouette(edges)).buffer(0)
        area = path.buffer(pen)
        if any(area.distance(other) < 3 * pen for other in canvas.areas):
            return None
        rgb = PALETTE[color][rng.integers(len(PALETTE[color]))]
        if not stands_out(rgb, canvas.ground_lab(area), True):
            return None
        strokes = edges if name == "line" else _outline_strokes(edges, size, rng)
        if name != "line" and rng.random() < 0.6:
            strokes += _filling(path, pen, rng)
        canvas.body += [_stroke(stroke, pen, css(rgb), rng) for stroke in strokes]
        canvas.areas.append(area)
        canvas.rgbs.append(rgb)
        canvas.colors.append(color)
        canvas.names.append(name)
        canvas.solid.append(False)
        assert index + 1 == len(canvas.names)
    return Drawing(composed(canvas), canvas.shapes())


def _outline_strokes(edges: list[Edge], size: float, rng: np.random.Generator) -> list[Edge]:
    """Return a stroke for each edge: past the corner, or stopping before it."""
    strokes = []
    for edge in edges:
        points = resampled(edge, 40)
        length = np.linalg.norm(np.diff(points, axis=0), axis=1).sum()
        ends = np.minimum(rng.uniform(-0.03, 0.05, 2) * size, 0.08 * length)
        first, last = points[0] - points[1], points[-1] - points[-2]
        shift = np.linspace(0, 1, 40)[:, None] ** 6
        points = points + shift[::-1] * first / np.linalg.norm(first) * ends[0]
        points = points + shift * last / np.linalg.norm(last) * ends[1]
        if len(edges) == 1:
            # The end of a closed curve misses its start.
            points = points + np.linspace(-0.5, 0.5, 40)[:, None] * rng.normal(0, 0.03 * size, 2)
        strokes.append(points)
    return strokes


def _filling(area: Polygon, pen: float, rng: np.random.Generator) -> list[Edge]:
    """Return hatching, or a scribble that joins the hatches."""
    angle, step = rng.uniform(20, 70), pen * rng.uniform(1.6, 2.6)
    turned = affinity.rotate(area.buffer(-pen * 0.6), -angle, origin=(0, 0))
    if turned.is_empty:
        return []
    left, top, right, bottom = turned.bounds
    hatches = []
    for y in np.arange(top + step / 2, bottom, step):
        cut = turned.intersection(
            LineString([(left - 1, y), (right + 1, y + rng.normal(0, step / 5))])
        )
        for part in getattr(cut, "geoms", [cut]):
            if part.length > pen:
                back = affinity.rotate(part, angle, origin=(0, 0))
                hatches.append(np.array(back.coords))
    if not hatches or rng.random() < 0.5:
        return hatches
    # A scribble stays on the paper between two hatches that lie side by side.
    scribbles, current = [], hatches[0]
    for index, hatch in enumerate(hatches[1:]):
        onward = hatch[::-1] if index % 2 == 0 else hatch
        if np.linalg.norm(onward[0] - current[-1]) < 3 * step:
            current = np.concatenate([current, onward])
        else:
            scribbles.append(current)
            current = onward
    return [*scribbles, current]


def _stroke(points: Edge, pen: float, color: str, rng: np.random.Generator) -> str:
    """Return a stroke whose width varies as a pen's does under a varying pressure."""
    length = np.linalg.norm(np.diff(points, axis=0), axis=1).sum()
    number = int(np.clip(length / (0.6 * pen), 8, 400))
    path = resampled(points, number)
    t = np.linspace(0, 1, number)
    phase = rng.uniform(0, 2 * np.pi, 2)
    waves = 0.16 * np.sin(2 * np.pi * t + phase[0]) + 0.1 * np.sin(7 * t + phase[1])
    widths = pen * (1 + waves) * (0.55 + 0.45 * np.clip(np.minimum(t, 1 - t) * 8, 0, 1))
    tremor = np.cumsum(rng.normal(0, 1, path.shape), axis=0) * pen * 0.02
    path = path + tremor - np.linspace(0, 1, number)[:, None] * tremor[-1]
    pieces = [
        f'<path d="M{a[0]:.2f} {a[1]:.2f}L{b[0]:.2f} {b[1]:.2f}" stroke-width="{width:.2f}"/>'
        for a, b, width in zip(path[:-1], path[1:], widths, strict=False)
    ]
    return f'<g stroke="{color}" stroke-linecap="round" fill="none">{"".join(pieces)}</g>'


def _letter_strokes(letter: str) -> list[Edge]:
    def numbers(stroke: str) -> Edge:
        return np.array([[float(n) for n in point.split(",")] for point in stroke.split()])

    return [numbers(stroke) for stroke in LETTERS[letter].split("/")]


def _word(width: int, height: int, rng: np.random.Generator) -> Drawing | None:
    canvas = _ground(width, height, rng)
    text, color = WORDS[rng.integers(len(WORDS))], _pen(canvas, rng)
    if color is None:
        return None
    strokes: list[Edge] = []
    x = 0.0
    for letter in text:
        drawn = _letter_strokes(letter)
        tilt, scale = rng.normal(0, 0.04), rng.uniform(0.92, 1.08)
        shear = np.array([[scale, tilt], [-tilt, scale]])
        strokes += [_rounded(s) @ shear + (x, rng.normal(0, 0.15)) for s in drawn]
        x += max(s[:, 0].max() for s in drawn) * scale + rng.uniform(1.2, 1.7)
    points = np.concatenate(strokes)
    low, high = points.min(0), points.max(0)
    scale = rng.uniform(0.45, 0.85) * width / (high - low)[0]
    extent = (high - low) * scale
    if extent[1] > 0.85 * height or extent[1] < 0.12 * canvas.longer:
        return None
    pen = max(extent[1] * rng.uniform(0.07, 0.13), 2.4 * canvas.longer / 256)
    margin = pen + 0.02 * canvas.shorter
    space = np.array([width, height]) - extent - 2 * margin
    if (space < 0).any():
        return None
    start = rng.random(2) * space + margin
    strokes = [(stroke - low) * scale + start for stroke in strokes]
    rgb = PALETTE[color][0]
    body: Sequence[str] = [_stroke(stroke, pen, css(rgb), rng) for stroke in strokes]
    canvas.body += body
    return Drawing(composed(canvas), (), text, color)


def _rounded(points: Edge) -> Edge:
    """Return a polyline with its bends rounded by cutting its corners twice."""
    for _ in range(2):
        middle = np.stack(
            [0.75 * points[:-1] + 0.25 * points[1:], 0.25 * points[:-1] + 0.75 * points[1:]], 1
        )
        points = np.concatenate([points[:1], middle.reshape(-1, 2), points[-1:]])
    return points
