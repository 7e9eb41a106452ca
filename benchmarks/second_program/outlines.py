"""Outlines of the eleven shapes as edges between corners, and edges as SVG paths.

An edge is float64 [number_of_points, 2], x to the right and y down. The last point of an edge is
the first point of the next edge. A closed curve without corners is a single edge.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Edge = NDArray[np.float64]

SHAPES = (
    "circle",
    "square",
    "triangle",
    "star",
    "cross",
    "rectangle",
    "oval",
    "heart",
    "arrow",
    "line",
    "hexagon",
)


def polygon(points: Sequence[tuple[float, float]]) -> list[Edge]:
    """Return the straight edges of a closed polygon."""
    ends = [*points[1:], points[0]]
    return [np.array([a, b], np.float64) for a, b in zip(points, ends, strict=True)]


def ring(radius: float, number: int, start: float) -> list[tuple[float, float]]:
    """Return evenly spaced points of a circle; `start` is the first angle in radians."""
    angles = start + 2 * np.pi * np.arange(number) / number
    return [(radius * np.cos(a), radius * np.sin(a)) for a in angles]


def unit_outline(name: str, rng: np.random.Generator, line_thickness: float) -> list[Edge]:
    """Return a shape in its usual position, about 1 long; its proportions are drawn from `rng`.

    Args:
        name: a name of SHAPES.
        rng: the source of proportions.
        line_thickness: thickness of a line and of thin arms, as a share of the length.
    """
    turn = 2 * np.pi * np.arange(25) / 24
    if name == "circle":
        return [np.stack([np.cos(turn), np.sin(turn)], 1) / 2]
    if name == "oval":
        return [np.stack([np.cos(turn), np.sin(turn) / rng.uniform(1.6, 2.3)], 1) / 2]
    if name in ("square", "rectangle", "line"):
        ratio = 1.0 if name == "square" else 1 / rng.uniform(1.7, 2.8)
        half = line_thickness / 2 if name == "line" else ratio / 2
        return polygon([(-0.5, -half), (0.5, -half), (0.5, half), (-0.5, half)])
    if name == "triangle":
        height, apex = rng.uniform(0.78, 1.1), rng.choice([0.0, 0.0, 0.0, 0.5, -0.5, 0.2])
        return polygon([(apex, -height / 2), (0.5, height / 2), (-0.5, height / 2)])
    if name == "star":
        outer = ring(0.5, 5, -np.pi / 2)
        inner = ring(0.5 * rng.uniform(0.38, 0.5), 5, -np.pi / 2 + np.pi / 5)
        return polygon([point for pair in zip(outer, inner, strict=True) for point in pair])
    if name == "cross":
        a = max(rng.uniform(0.14, 0.36), line_thickness) / 2
        quarter = [(-a, -0.5), (a, -0.5), (a, -a)]
        return polygon([_quarter_turns(p, k) for k in range(4) for p in quarter])
    if name == "heart":
        halves = [np.linspace(0, np.pi, 15), np.linspace(np.pi, 2 * np.pi, 15)]
        return [_heart(half) / 33 for half in halves]
    if name == "arrow":
        shaft = max(rng.uniform(0.09, 0.28), line_thickness) / 2
        head, neck = max(rng.uniform(0.44, 0.7), 4.4 * shaft) / 2, 0.5 - rng.uniform(0.32, 0.45)
        return polygon(
            [
                (-0.5, -shaft),
                (neck, -shaft),
                (neck, -head),
                (0.5, 0.0),
                (neck, head),
                (neck, shaft),
                (-0.5, shaft),
            ]
        )
    return polygon(ring(0.5, 6, 0.0))


def _quarter_turns(point: tuple[float, float], number: int) -> tuple[float, float]:
    for _ in range(number):
        point = (-point[1], point[0])
    return point


def _heart(t: Edge) -> Edge:
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y], 1)


def usual_rotation(name: str, rng: np.random.Generator) -> float:
    """Return an angle in radians at which a person still gives the shape the same name."""
    # A square on its corner is a diamond to many people, and a heart on its side is a puzzle.
    limit = {"square": 20, "heart": 30, "triangle": 180, "star": 36}.get(name, 180)
    if rng.random() < 0.35 and name not in ("line", "arrow"):
        limit = 0
    return float(np.radians(rng.uniform(-limit, limit)))


def rotated(edges: list[Edge], angle: float) -> list[Edge]:
    """Rotate, and scale and move so that the box is centred on 0 and its longer side is 1."""
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    turned = [edge @ turn for edge in edges]
    points = np.concatenate(turned)
    low, high = points.min(0), points.max(0)
    return [(edge - (low + high) / 2) / (high - low).max() for edge in turned]


def wobbled(edges: list[Edge], amount: float, rng: np.random.Generator) -> list[Edge]:
    """Move corners and bend edges as an unsteady hand does; `amount` is a share of the size."""
    corners = rng.normal(0, amount, (len(edges), 2))
    bent = []
    for index, edge in enumerate(edges):
        points = resampled(edge, 6) if len(edge) == 2 else edge
        t = np.linspace(0, 1, len(points))[:, None]
        ends = corners[index] * (1 - t) + corners[(index + 1) % len(edges)] * t
        # A short edge bends less, else a star swells into a flower.
        bending = amount * min(1.0, 1.2 * float(np.linalg.norm(np.ptp(edge, axis=0))))
        bend = np.sin(np.pi * t) * rng.normal(0, bending, 2)
        wave = np.sin(2 * np.pi * t) * rng.normal(0, bending / 2, 2)
        bent.append(points + ends + bend + wave)
    return bent


def resampled(points: Edge, number: int) -> Edge:
    """Return `number` points at equal distances along a polyline."""
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    wanted = np.linspace(0, along[-1], number)
    return np.stack([np.interp(wanted, along, points[:, axis]) for axis in (0, 1)], 1)


def silhouette(edges: list[Edge]) -> Edge:
    """Return the outline as the points of a polygon, the first point not repeated."""
    return np.concatenate([edge[:-1] for edge in edges])


def svg_path(edges: list[Edge]) -> str:
    """Return the `d` of a closed path: cubic Béziers through the points of each edge."""
    parts = [f"M{edges[0][0, 0]:.2f} {edges[0][0, 1]:.2f}"]
    for edge in edges:
        if len(edge) == 2:
            parts.append(f"L{edge[1, 0]:.2f} {edge[1, 1]:.2f}")
            continue
        is_closed = len(edges) == 1
        before = edge[-2] if is_closed else edge[0]
        after = edge[1] if is_closed else edge[-1]
        points = np.concatenate([[before], edge, [after]])
        tangents = (points[2:] - points[:-2]) / 6
        first, second = edge[:-1] + tangents[:-1], edge[1:] - tangents[1:]
        for a, b, end in zip(first, second, edge[1:], strict=True):
            parts.append(f"C{a[0]:.2f} {a[1]:.2f} {b[0]:.2f} {b[1]:.2f} {end[0]:.2f} {end[1]:.2f}")
    return " ".join(parts) + "Z"
