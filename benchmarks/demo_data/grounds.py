"""Grounds to draw on: plain, graded, paper, whiteboard, textured, noisy, photograph-like."""

import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from demo_data.colors import Rgb, luminance

Pixels = NDArray[np.float32]
SOFT, SOFT_SIZE = ("gradient", "whiteboard", "texture", "photograph"), 224


@dataclass(frozen=True)
class Ground:
    """A picture without anything on it.

    Attributes:
        picture: RGB.
        colors: its main colors, which everything drawn on it must stand out from.
    """

    picture: Image.Image
    colors: list[Rgb]

    @property
    def is_dark(self) -> bool:
        """Whether it cannot be told from the black border that makes the picture square."""
        return min(luminance(color) for color in self.colors) < 45


def draw_ground(rng: random.Random, width: int, height: int) -> Ground:
    """Draw a ground of `width` x `height` pixels."""
    kind = rng.choices(
        ("plain", "gradient", "paper", "whiteboard", "texture", "photograph", "noise"),
        (36, 12, 15, 7, 9, 15, 6),
    )[0]
    if kind == "plain":
        color = _plain_color(rng)
        return Ground(Image.new("RGB", (width, height), color), [color])
    numbers = np.random.default_rng(rng.getrandbits(48))
    # Soft grounds of large pictures are made smaller: nothing of them is lost, and time is won.
    shrink = max(1.0, max(width, height) / SOFT_SIZE) if kind in SOFT else 1.0
    size = (round(width / shrink), round(height / shrink))
    pixels, colors = _GROUNDS[kind](rng, numbers, *size)
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if shrink > 1:
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return Ground(picture, colors)


def _plain_color(rng: random.Random) -> Rgb:
    kind = rng.random()
    if kind < 0.4:
        return (255, 255, 255)
    if kind < 0.47:
        return (0, 0, 0)
    return _base(rng)


def _base(rng: random.Random) -> Rgb:
    """Light, dark or in between, from gray to a strong color."""
    level = rng.choices(
        (rng.uniform(195, 255), rng.uniform(0, 70), rng.uniform(70, 195)), (55, 20, 25)
    )[0]
    strength = rng.choice((0, 6, 14, 30, 60))
    red, green, blue = (
        round(min(255, max(0, level + rng.uniform(-strength, strength)))) for _ in range(3)
    )
    return red, green, blue


def _near(rng: random.Random, color: Rgb, amount: float) -> Rgb:
    red, green, blue = (
        round(min(255, max(0, value + rng.uniform(-amount, amount)))) for value in color
    )
    return red, green, blue


def _waves(numbers: np.random.Generator, width: int, height: int, cells: int) -> Pixels:
    """float32 [height, width, 1] in 0..1, as smooth as `cells` values across allow."""
    rows = max(2, round(cells * height / max(width, height)))
    columns = max(2, round(cells * width / max(width, height)))
    small = Image.fromarray(numbers.random((rows, columns), np.float32))
    wide = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
    return np.clip(wide, 0, 1)[..., None]


def _grain(numbers: np.random.Generator, width: int, height: int, size: float) -> Pixels:
    grain = numbers.integers(-128, 128, (height, width, 1), np.int8).astype(np.float32)
    return grain * (size / 128)


def _gradient(
    rng: random.Random, numbers: np.random.Generator, width: int, height: int
) -> tuple[Pixels, list[Rgb]]:
    del numbers
    first = _base(rng)
    second = _near(rng, first, rng.uniform(25, 75))
    across = np.linspace(0, 1, width, dtype=np.float32)[None, :, None]
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    share = rng.random()
    mix = share * across + (1 - share) * down
    if rng.random() < 0.3:
        mix = np.minimum(1, 2 * np.hypot(across - 0.5, down - 0.5))
    pixels = np.float32(first) + (np.float32(second) - np.float32(first)) * mix
    return pixels, [first, second, _middle(first, second)]


def _middle(first: Rgb, second: Rgb) -> Rgb:
    red, green, blue = ((a + b) // 2 for a, b in zip(first, second, strict=True))
    return red, green, blue


def _paper(
    rng: random.Random, numbers: np.random.Generator, width: int, height: int
) -> tuple[Pixels, list[Rgb]]:
    paper = _near(rng, (244, 240, 228), 11)
    pixels = np.float32(paper) * (1 - 0.22 * rng.random() * _waves(numbers, width, height, 3))
    pixels = pixels + _grain(numbers, width, height, rng.uniform(0, 9))
    kind = rng.random()
    if kind < 0.6:
        step = max(5, round(max(width, height) * rng.uniform(0.025, 0.09)))
        ink = np.float32(rng.choice(((170, 195, 225), (190, 190, 190), (215, 180, 180))))
        thick = 1 if step < 14 else rng.choice((1, 1, 2))
        first = rng.randrange(step)
        for k in range(thick):
            pixels[first + k :: step] = ink
            if kind < 0.35:
                pixels[:, first + k :: step] = ink
    return pixels, [paper, _near(rng, (205, 200, 190), 3)]


def _whiteboard(
    rng: random.Random, numbers: np.random.Generator, width: int, height: int
) -> tuple[Pixels, list[Rgb]]:
    board = _near(rng, (235, 238, 240), 12)
    light = 1 - 0.25 * rng.random() * _waves(numbers, width, height, 2)
    smear = _waves(numbers, width, height, rng.randint(6, 14)) ** 3
    pixels = np.float32(board) * light - 22 * rng.random() * smear
    return pixels + _grain(numbers, width, height, 3), [board, _near(rng, (200, 204, 208), 3)]


def _texture(
    rng: random.Random, numbers: np.random.Generator, width: int, height: int
) -> tuple[Pixels, list[Rgb]]:
    base = _base(rng)
    other = _near(rng, base, rng.uniform(15, 45))
    mix = _waves(numbers, width, height, rng.choice((12, 24, 48)))
    if rng.random() < 0.3:
        rows = np.arange(height)[:, None, None] // max(3, height // rng.randint(6, 24))
        mix = (rows % 2).astype(np.float32) * np.ones((1, width, 1), np.float32)
    pixels = np.float32(base) + (np.float32(other) - np.float32(base)) * mix
    return pixels, [base, other]


def _photograph(
    rng: random.Random, numbers: np.random.Generator, width: int, height: int
) -> tuple[Pixels, list[Rgb]]:
    base = _base(rng)
    others = [_near(rng, base, rng.uniform(20, 70)) for _ in range(2)]
    pixels = np.float32(base) * np.ones((height, width, 1), np.float32)
    for other, cells in zip(others, (rng.randint(2, 5), rng.randint(4, 10)), strict=True):
        mix = _waves(numbers, width, height, cells)
        if rng.random() < 0.5:
            mix = np.clip((mix - 0.5) * rng.uniform(2, 6) + 0.5, 0, 1)
        pixels = pixels + (np.float32(other) - pixels) * mix
    return pixels + _grain(numbers, width, height, rng.uniform(0, 12)), [base, *others]


def _noise(
    rng: random.Random, numbers: np.random.Generator, width: int, height: int
) -> tuple[Pixels, list[Rgb]]:
    base = _base(rng)
    size = rng.uniform(10, 45)
    grain = numbers.integers(-128, 128, (height, width, 3), np.int8).astype(np.float32)
    return np.float32(base) + grain * (size / 128), [base]


_GROUNDS = {
    "gradient": _gradient,
    "paper": _paper,
    "whiteboard": _whiteboard,
    "texture": _texture,
    "photograph": _photograph,
    "noise": _noise,
}
