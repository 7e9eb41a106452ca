"""A picture in the making: its ground, the objects placed so far, and the camera's damage."""

import io
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from shapely.geometry import Polygon, box
from shapely.geometry.base import BaseGeometry

from second_program.colors import Rgb, lab


@dataclass(frozen=True)
class Shape:
    """An object of a finished picture.

    Attributes:
        name: a name of `outlines.SHAPES`.
        color: a name of `colors.COLORS`.
        x: centre of the object's box, as a share of the picture's width.
        y: centre of the object's box, as a share of the picture's height.
        size: longer side of the object's box, as a share of the picture's shorter side.
        mass_x: centre of the visible area, as a share of the width.
        mass_y: centre of the visible area, as a share of the height.
    """

    name: str
    color: str
    x: float
    y: float
    size: float
    mass_x: float
    mass_y: float


@dataclass(frozen=True)
class Drawing:
    """A picture and its truth.

    Attributes:
        picture: RGB.
        shapes: the objects, in the order in which they were drawn.
        text: the word, or None.
        text_color: the word's colour, or None.
    """

    picture: Image.Image
    shapes: tuple[Shape, ...]
    text: str | None = None
    text_color: str | None = None


@dataclass
class Canvas:
    """The ground, and the objects placed so far.

    Attributes:
        ground: RGB.
        body: SVG elements, in pixels.
        areas: the area that each object covers, in pixels.
        rgbs: the colour of each object.
        colors: the name of each object's colour.
        names: the name of each object.
        solid: whether each object is filled, so that another may overlap it.
    """

    ground: Image.Image
    body: list[str] = field(default_factory=list)
    areas: list[BaseGeometry] = field(default_factory=list)
    rgbs: list[Rgb] = field(default_factory=list)
    colors: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    solid: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        width, height = self.ground.size
        scale = min(1.0, 128 / max(width, height))
        small = (max(8, round(width * scale)), max(8, round(height * scale)))
        self._lab = lab(np.asarray(self.ground.resize(small, Image.Resampling.BOX)))

    @property
    def shorter(self) -> int:
        return min(self.ground.size)

    @property
    def longer(self) -> int:
        return max(self.ground.size)

    @property
    def frame(self) -> Polygon:
        return box(0, 0, *self.ground.size)

    def ground_lab(self, area: BaseGeometry) -> NDArray[np.float64]:
        """Return L*a*b* of the ground in the box of an area."""
        rows, columns = self._lab.shape[:2]
        width, height = self.ground.size
        left, top, right, bottom = area.bounds
        x0, x1 = (int(np.clip(x / width * columns, 0, columns - 1)) for x in (left, right))
        y0, y1 = (int(np.clip(y / height * rows, 0, rows - 1)) for y in (top, bottom))
        return self._lab[y0 : y1 + 1, x0 : x1 + 1].reshape(-1, 3)

    def shapes(self) -> tuple[Shape, ...]:
        """Return the objects as a viewer sees them: cut by the border and by later objects."""
        width, height = self.ground.size
        found = []
        for index, (name, color, area) in enumerate(
            zip(self.names, self.colors, self.areas, strict=True)
        ):
            seen = area.intersection(self.frame)
            left, top, right, bottom = seen.bounds
            for later in self.areas[index + 1 :]:
                seen = seen.difference(later)
            found.append(
                Shape(
                    name,
                    color,
                    (left + right) / 2 / width,
                    (top + bottom) / 2 / height,
                    max(right - left, bottom - top) / self.shorter,
                    seen.centroid.x / width,
                    seen.centroid.y / height,
                )
            )
        return tuple(found)


def picture_size(rng: np.random.Generator) -> tuple[int, int]:
    """Return width and height: 120 to 1600 pixels, 1:2 to 2:1."""
    longer = round(float(np.exp(rng.uniform(np.log(170), np.log(1600)))))
    ratio = 1.0 if rng.random() < 0.3 else float(np.exp(rng.uniform(0, np.log(2))))
    shorter = max(120, round(longer / ratio))
    return (longer, shorter) if rng.random() < 0.55 else (shorter, longer)


def damaged(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the picture as cameras and messengers pass it on: often whole, at times damaged."""
    longer = max(picture.size)
    choice = rng.random()
    if choice < 0.14 and longer >= 300:
        return recompressed(picture, int(rng.integers(30, 61)))
    if choice < 0.24:
        return picture.filter(ImageFilter.GaussianBlur(longer / 256 * rng.uniform(0.3, 0.8)))
    if choice < 0.34 and longer >= 360:
        share = rng.uniform(170, 240) / longer
        small = picture.resize(
            (round(picture.width * share), round(picture.height * share)), Image.Resampling.BOX
        )
        filters = (Image.Resampling.BILINEAR, Image.Resampling.NEAREST, Image.Resampling.BICUBIC)
        return small.resize(picture.size, filters[rng.integers(3)])
    return picture


def recompressed(picture: Image.Image, quality: int) -> Image.Image:
    """Return the picture after JPEG at a quality of 1 to 95."""
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=quality)
    return Image.open(data).convert("RGB")
