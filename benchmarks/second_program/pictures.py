"""Pictures of shapes, single shapes, empty grounds and printed words."""

import numpy as np
from PIL import Image
from shapely import affinity
from shapely.geometry import Polygon
from shapely.geometry.base import BaseGeometry

from second_program import grounds
from second_program.canvas import Canvas, Drawing, damaged, picture_size
from second_program.colors import COLORS, DARK, PALETTE, WEIGHTS, Rgb, css, lab, stands_out
from second_program.outlines import (
    SHAPES,
    rotated,
    silhouette,
    svg_path,
    unit_outline,
    usual_rotation,
    wobbled,
)
from second_program.raster import FONTS, rasterise, text_box, text_element
from second_program.vocabulary import random_text

# The least size at which each shape keeps its name, in pixels of the model's 256 x 256 input.
LEAST_SIZE = {
    "hexagon": 32,
    "oval": 22,
    "arrow": 26,
    "heart": 20,
    "star": 22,
    "line": 26,
    "triangle": 20,
}
LEAST_SIZE_OTHERS = 16
# A square that the border cuts is a rectangle, so the shapes that are left out are never cut.
LEAST_VISIBLE_AT_BORDER = {"circle": 0.65, "star": 0.75, "heart": 0.8, "cross": 0.92, "line": 0.65}
# Least visible share under other objects; 0.6 for the shapes that are left out.
LEAST_VISIBLE = {"square": 0.8, "rectangle": 0.8, "heart": 0.8, "hexagon": 0.8, "arrow": 0.9}


def composed(canvas: Canvas) -> Image.Image:
    """Return the ground with the objects on it, RGB."""
    drawn = rasterise("".join(canvas.body), *canvas.ground.size)
    return Image.alpha_composite(canvas.ground.convert("RGBA"), drawn).convert("RGB")


def shapes_picture(rng: np.random.Generator) -> Drawing:
    """Draw one to six shapes on any ground."""
    while True:
        canvas = Canvas(grounds.ground(*picture_size(rng), rng))
        number = int(rng.choice([1, 2, 3, 4, 5, 6], p=[0.2, 0.22, 0.2, 0.16, 0.12, 0.1]))
        largest = min(0.9, 0.95 / np.sqrt(number))
        hand = rng.uniform(0.006, 0.015) if rng.random() < 0.3 else 0.0
        for _ in range(number):
            is_copy = bool(canvas.names) and rng.random() < 0.22
            kind = canvas.names[-1] if is_copy else SHAPES[rng.integers(len(SHAPES))]
            color = canvas.colors[-1] if is_copy else None
            place_shape(canvas, kind, color, largest, hand, rng)
        if canvas.names:
            return Drawing(damaged(composed(canvas), rng), canvas.shapes())


def single_picture(rng: np.random.Generator) -> Drawing:
    """Draw one shape of 6 to 90 % on a plain ground."""
    while True:
        canvas = Canvas(grounds.plain(*picture_size(rng), grounds.plain_color(rng)))
        if place_shape(canvas, SHAPES[rng.integers(len(SHAPES))], None, 0.9, 0.0, rng):
            return Drawing(composed(canvas), canvas.shapes())


def empty_picture(rng: np.random.Generator) -> Drawing:
    """Draw a ground only."""
    return Drawing(damaged(grounds.ground(*picture_size(rng), rng), rng), ())


def place_shape(
    canvas: Canvas,
    name: str,
    color: str | None,
    largest: float,
    hand: float,
    rng: np.random.Generator,
) -> bool:
    """Add a shape where it is clear to see; return whether a place was found.

    Args:
        canvas: the picture, which the shape is added to.
        name: a name of SHAPES.
        color: the name of the colour, or None for any that stands out.
        largest: largest size, as a share of the shorter side.
        hand: unsteadiness, as a share of the size.
        rng: the source of everything else.
    """
    pixel = canvas.longer / 256
    least = max(0.06 * canvas.shorter, LEAST_SIZE.get(name, LEAST_SIZE_OTHERS) * pixel)
    most = max(largest * canvas.shorter, least)
    for _ in range(60):
        size = float(np.exp(rng.uniform(np.log(least), np.log(most))))
        most = max(least, most * 0.98)
        is_outlined = name != "line" and size > 30 * pixel and rng.random() < 0.3
        stroke = max(size * rng.uniform(0.02, 0.12), 2.2 * pixel, 1.6) if is_outlined else 0.0
        thickness = max(rng.uniform(0.02, 0.07), 2.4 * pixel / size, 1.8 / size)
        if is_outlined:
            # Both sides of an arm need room for their strokes and for ground between them.
            stroke = min(stroke, 0.075 * size) if name in ("star", "cross", "arrow") else stroke
            thickness = 3.2 * stroke / size
        edges = rotated(unit_outline(name, rng, thickness), usual_rotation(name, rng))
        if hand and name not in ("line", "hexagon"):
            edges = wobbled(edges, hand, rng)
        edges = [edge * (size - stroke) for edge in edges]
        outline = Polygon(silhouette(edges)).buffer(stroke / 2, join_style="mitre")
        low, high = np.array(outline.bounds[:2]), np.array(outline.bounds[2:])
        is_cut = size > 40 * pixel and name in LEAST_VISIBLE_AT_BORDER and rng.random() < 0.15
        may_overlap = not is_outlined and name != "line" and rng.random() < 0.3
        gap = -size * rng.uniform(0.1, 0.32) if is_cut else 2 * pixel
        space_low, space_high = gap - low, np.array(canvas.ground.size) - gap - high
        if (space_low > space_high).any():
            continue
        center = _clear_point(rng.uniform(space_low, space_high), space_low, space_high, rng)
        if is_cut:
            side = rng.integers(2)
            center[side] = (space_low, space_high)[rng.integers(2)][side]
        elif may_overlap and any(canvas.solid):
            center = np.clip(_beside_solid(canvas, size, rng), space_low, space_high)
        area = affinity.translate(outline, *center)
        if area.intersection(canvas.frame).area < LEAST_VISIBLE_AT_BORDER.get(name, 1) * area.area:
            continue
        crossed = _crossed(canvas, area, may_overlap, 3 * pixel)
        if crossed is None:
            continue
        is_thin = is_outlined or name == "line" or size < 26 * pixel
        found = _color(canvas, color, area, crossed, is_thin, rng)
        if found is None:
            continue
        color_name, rgb = found
        path = svg_path([edge + center for edge in edges])
        if is_outlined:
            join = "round" if rng.random() < 0.5 else "miter"
            paint = f'fill="none" stroke="{css(rgb)}" stroke-width="{stroke:.2f}"'
            paint += f' stroke-linejoin="{join}"'
        else:
            paint = f'fill="{css(rgb)}"'
            # The dark border of a narrow arm would hide its colour.
            broad = {"arrow": 110, "cross": 80, "star": 70, "rectangle": 60}.get(name, 40)
            is_light = color_name not in DARK and _is_light(canvas, area)
            if is_light and not is_thin and size > broad * pixel and rng.random() < 0.25:
                border = max(1.3 * pixel, size * rng.uniform(0.015, 0.035))
                paint += f' stroke="#151515" stroke-width="{border:.2f}" stroke-linejoin="round"'
        canvas.body.append(f'<path d="{path}" {paint}/>')
        canvas.areas.append(area)
        canvas.rgbs.append(rgb)
        canvas.colors.append(color_name)
        canvas.names.append(name)
        canvas.solid.append(not is_outlined)
        return True
    return False


def _clear_point(
    point: np.ndarray, low: np.ndarray, high: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Move a centre to the middle of a third's range in half of the pictures, where it can be."""
    if rng.random() < 0.5:
        return point
    thirds = np.array([1, 3, 5]) / 6
    extent = low + high
    wanted = extent * thirds[rng.integers(3, size=2)] + extent * rng.uniform(-0.08, 0.08, 2)
    return np.clip(wanted, low, high)


def _beside_solid(canvas: Canvas, size: float, rng: np.random.Generator) -> np.ndarray:
    """Return a centre from which an object of `size` overlaps an earlier filled object in part."""
    solid = [area for area, is_solid in zip(canvas.areas, canvas.solid, strict=True) if is_solid]
    other = solid[rng.integers(len(solid))]
    reach = (size + np.sqrt(other.area)) / 2 * rng.uniform(0.4, 0.95)
    angle = rng.uniform(0, 2 * np.pi)
    middle = np.array([other.centroid.x, other.centroid.y])
    return middle + reach * np.array([np.cos(angle), np.sin(angle)])


def _crossed(canvas: Canvas, area: BaseGeometry, may_overlap: bool, gap: float) -> list[int] | None:
    """Return the earlier objects that the area overlaps, or None where it may not stand."""
    near = [i for i, other in enumerate(canvas.areas) if other.distance(area) < gap]
    if not near:
        return []
    if not may_overlap or len(near) > 1:
        return None
    for index in near:
        other = canvas.areas[index]
        if not canvas.solid[index] or other.intersection(area).area < 0.1 * area.area:
            return None
        if min(other.area, area.area) < (30 / 256 * canvas.longer) ** 2 / 2:
            return None
        seen = other.intersection(canvas.frame)
        for later in [*canvas.areas[index + 1 :], area]:
            seen = seen.difference(later)
        if seen.area < LEAST_VISIBLE.get(canvas.names[index], 0.6) * other.area:
            return None
    return near


def _color(
    canvas: Canvas,
    wanted: str | None,
    area: BaseGeometry,
    crossed: list[int],
    is_thin: bool,
    rng: np.random.Generator,
) -> tuple[str, Rgb] | None:
    """Return a colour's name and RGB that stand out from the ground and the overlapped objects."""
    ground = canvas.ground_lab(area)
    order = rng.choice(COLORS, len(COLORS), replace=False, p=WEIGHTS / WEIGHTS.sum())
    for name in [wanted] if wanted else [str(name) for name in order]:
        choices: tuple[Rgb, ...]
        if name in canvas.colors:
            # A person holds one red pen at a time.
            choices = (canvas.rgbs[canvas.colors.index(name)],)
        else:
            choices = PALETTE[name]
        rgb = choices[rng.integers(len(choices))]
        behind = [lab(canvas.rgbs[i])[None] for i in crossed]
        if stands_out(rgb, ground, is_thin) and all(stands_out(rgb, b, True) for b in behind):
            return name, rgb
    return None


def _is_light(canvas: Canvas, area: BaseGeometry) -> bool:
    return bool(canvas.ground_lab(area)[:, 0].mean() > 70)


def word_picture(rng: np.random.Generator) -> Drawing:
    """Draw a printed word or number in one colour."""
    while True:
        text = random_text(rng)
        font = FONTS[rng.integers(len(FONTS))]
        spacing = f'letter-spacing="{rng.uniform(0, 8):.1f}"' if rng.random() < 0.3 else ""
        left, top, right, bottom = text_box(text, font, spacing)
        width, height = picture_size(rng)
        angle = float(rng.uniform(-20, 20)) if rng.random() < 0.6 else 0.0
        word = affinity.rotate(
            Polygon([(left, top), (right, top), (right, bottom), (left, bottom)]), angle
        )
        x0, y0, x1, y1 = word.bounds
        scale = rng.uniform(0.35, 0.92) * width / (x1 - x0)
        # Letters that a person reads at a glance: not below 9 % of the longer side.
        if (bottom - top) * scale < 0.09 * max(width, height) or (y1 - y0) * scale > 0.92 * height:
            continue
        middle = np.array([(x0 + x1) / 2, (y0 + y1) / 2])
        half = np.array([x1 - x0, y1 - y0]) * scale / 2
        margin = 0.02 * min(width, height)
        center = rng.uniform(half + margin, np.array([width, height]) - half - margin)
        canvas = Canvas(grounds.ground(width, height, rng))
        area = affinity.translate(
            affinity.scale(word, scale, scale, origin=tuple(middle)), *(center - middle)
        )
        found = _color(canvas, None, area, [], True, rng)
        if found is None:
            continue
        # shapely turned the box about its centre; SVG turns about the same point.
        box_middle = ((left + right) / 2, (top + bottom) / 2)
        move = (
            f"translate({center[0]:.2f} {center[1]:.2f}) scale({scale:.4f}) rotate({angle:.2f}) "
            f"translate({-box_middle[0]:.2f} {-box_middle[1]:.2f})"
        )
        element = text_element(text, font, f'{spacing} fill="{css(found[1])}"')
        drawn = rasterise(f'<g transform="{move}">{element}</g>', width, height, font)
        picture = Image.alpha_composite(canvas.ground.convert("RGBA"), drawn).convert("RGB")
        return Drawing(damaged(picture, rng), (), text, found[0])
