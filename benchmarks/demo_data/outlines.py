"""Outlines of the eleven shapes: points whose longest side is 1, around the origin."""

import math
import random

import numpy as np

Point = tuple[float, float]

SHAPES = (
    *("circle", "square", "triangle", "star", "cross", "rectangle", "oval", "heart", "arrow"),
    *("line", "hexagon"),
)


def outline(rng: random.Random, name: str) -> list[Point]:
    """Draw one outline of a shape, unrotated, its bounding box's longest side 1."""
    points = _OUTLINES[name](rng)
    if name in ("square", "rectangle", "hexagon", "triangle") and rng.random() < 0.15:
        points = _rounded(points, rng.uniform(0.08, 0.22))
    return _normalised(points)


def _normalised(points: list[Point]) -> list[Point]:
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    top, bottom = min(y for _, y in points), max(y for _, y in points)
    side = max(right - left, bottom - top)
    middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
    return [((x - middle_x) / side, (y - middle_y) / side) for x, y in points]


def _ring(count: int, start: float = -math.pi / 2, inner: float | None = None) -> list[Point]:
    total = count if inner is None else 2 * count
    radii = [1.0 if inner is None or k % 2 == 0 else inner for k in range(total)]
    angles = [start + 2 * math.pi * k / total for k in range(total)]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


def _circle(rng: random.Random) -> list[Point]:
    squeeze = rng.uniform(0.93, 1.0)
    return [(x, y * squeeze) for x, y in _ring(48)]


def _oval(rng: random.Random) -> list[Point]:
    squeeze = 1 / rng.uniform(1.38, 2.6)
    return [(x, y * squeeze) for x, y in _ring(48)]


def _box(ratio: float) -> list[Point]:
    return [(-ratio, -1), (ratio, -1), (ratio, 1), (-ratio, 1)]


def _square(rng: random.Random) -> list[Point]:
    return _box(rng.uniform(0.93, 1.07))


def _rectangle(rng: random.Random) -> list[Point]:
    return _box(rng.uniform(1.42, 3.2))


def _triangle(rng: random.Random) -> list[Point]:
    kind = rng.random()
    if kind < 0.5:
        return _ring(3)
    height = rng.uniform(0.7, 1.5)
    if kind < 0.8:
        return [(0, -height), (1, 0), (-1, 0)]
    return [(-0.6, -height), (1, 0), (-0.6, 0)]


def _star(rng: random.Random) -> list[Point]:
    return _ring(5, inner=rng.uniform(0.36, 0.55))


def _cross(rng: random.Random) -> list[Point]:
    bar = rng.uniform(0.12, 0.36)
    long = rng.choice((1.0, 1.0, rng.uniform(0.85, 1.25)))
    quarter = [(bar, -bar), (bar, -1.0), (-bar, -1.0), (-bar, -bar)]
    points: list[Point] = [*quarter]
    points += [(-1.0, -bar), (-1.0, bar), (-bar, bar)]
    points += [(-bar, long), (bar, long), (bar, bar), (1.0, bar), (1.0, -bar)]
    return points


def _heart(rng: random.Random) -> list[Point]:
    stretch = rng.uniform(0.85, 1.1)
    points = []
    for k in range(48):
        t = 2 * math.pi * k / 48
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x, -y * stretch))
    return points


def _arrow(rng: random.Random) -> list[Point]:
    shaft = rng.uniform(0.05, 0.22)
    head = rng.uniform(max(0.26, 1.8 * shaft), 0.52)
    length = rng.uniform(0.3, 0.55) * (1 if head > 0.35 else 0.8)
    return [
        *((-1.0, -shaft), (1 - 2 * length, -shaft), (1 - 2 * length, -head), (1.0, 0.0)),
        *((1 - 2 * length, head), (1 - 2 * length, shaft), (-1.0, shaft)),
    ]


def _line(rng: random.Random) -> list[Point]:
    return _box(rng.uniform(9, 34))


def _hexagon(rng: random.Random) -> list[Point]:
    del rng
    return _ring(6, start=0.0)


_OUTLINES = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "rectangle": _rectangle,
    "oval": _oval,
    "heart": _heart,
    "arrow": _arrow,
    "line": _line,
    "hexagon": _hexagon,
}


def _rounded(points: list[Point], share: float) -> list[Point]:
    """Replace each corner by a curve that begins `share` of a side before it."""
    result: list[Point] = []
    for k, (x, y) in enumerate(points):
        for other in (points[k - 1], points[(k + 1) % len(points)]):
            result.append((x + (other[0] - x) * share, y + (other[1] - y) * share))
        before, after = result.pop(-2), result.pop()
        for t in (0.0, 0.33, 0.67, 1.0):
            keep, go = (1 - t) ** 2, t**2
            middle = 2 * t * (1 - t)
            result.append(
                (
                    keep * before[0] + middle * x + go * after[0],
                    keep * before[1] + middle * y + go * after[1],
                )
            )
    return result


def dense(points: list[Point], step: float, is_closed: bool = True) -> list[Point]:
    """Put points on the sides so that two neighbours are at most `step` apart."""
    result: list[Point] = []
    pairs = zip(points, points[1:] + points[:1] if is_closed else points[1:], strict=False)
    for (x, y), (to_x, to_y) in pairs:
        count = max(1, math.ceil(math.hypot(to_x - x, to_y - y) / step))
        result += [(x + (to_x - x) * k / count, y + (to_y - y) * k / count) for k in range(count)]
    return result if is_closed else [*result, points[-1]]


def wobbled(rng: random.Random, points: list[Point], amount: float) -> list[Point]:
    """Move points as an unsteady hand does: slow waves along the outline, `amount` of size 1."""
    harmonics = np.array((1, 2, 3, 5, 8), np.float64)
    sizes = amount / harmonics**0.7
    t = np.arange(len(points))[:, None] * (2 * math.pi / len(points)) * harmonics
    phases = np.array([rng.uniform(0, 2 * math.pi) for _ in range(10)]).reshape(2, 1, 5)
    moved = np.array(points) + (sizes * np.sin(t + phases)).sum(-1).T
    return [(x, y) for x, y in moved.tolist()]


def turned(points: list[Point], angle: float) -> list[Point]:
    cosine, sine = math.cos(angle), math.sin(angle)
    return [(x * cosine - y * sine, x * sine + y * cosine) for x, y in points]


def box_of(points: list[Point]) -> tuple[float, float, float, float]:
    return (
        min(x for x, _ in points),
        min(y for _, y in points),
        max(x for x, _ in points),
        max(y for _, y in points),
    )
