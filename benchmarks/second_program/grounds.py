"""Grounds: plain, paper, coloured, gradient, ruled, whiteboard, noise, photograph-like blur."""

import numpy as np
from PIL import Image, ImageFilter

from second_program.colors import Rgb, css
from second_program.raster import rasterise

KINDS = ("white", "paper", "plain", "gradient", "ruled", "squared", "whiteboard", "noise", "photo")
SHARES = (0.22, 0.1, 0.18, 0.12, 0.06, 0.07, 0.07, 0.08, 0.1)

PAPERS: tuple[Rgb, ...] = ((251, 247, 238), (245, 240, 228), (250, 250, 247), (242, 238, 230))
LIGHT: tuple[Rgb, ...] = (
    (255, 250, 205),
    (224, 240, 255),
    (226, 245, 226),
    (255, 228, 225),
    (230, 230, 250),
    (238, 238, 238),
    (222, 214, 198),
)
STRONG: tuple[Rgb, ...] = (
    (135, 206, 235),
    (255, 224, 102),
    (144, 200, 144),
    (200, 60, 60),
    (30, 110, 170),
    (20, 110, 80),
)
DARK: tuple[Rgb, ...] = ((0, 0, 0), (25, 30, 60), (40, 44, 52), (36, 62, 50), (60, 30, 50))


def plain_color(rng: np.random.Generator) -> Rgb:
    """Return white, a light, a strong or a dark colour."""
    group = ((((255, 255, 255),), LIGHT, STRONG, DARK))[rng.choice(4, p=[0.35, 0.25, 0.15, 0.25])]
    return group[rng.integers(len(group))]


def plain(width: int, height: int, rgb: Rgb) -> Image.Image:
    """Return a ground of one colour."""
    return Image.new("RGB", (width, height), rgb)


def ground(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Return a ground of any kind, RGB."""
    kind = KINDS[rng.choice(len(KINDS), p=SHARES)]
    if kind == "white":
        return plain(width, height, (255, 255, 255))
    if kind == "plain":
        group = (LIGHT, STRONG, DARK)[rng.choice(3, p=[0.35, 0.3, 0.35])]
        return plain(width, height, group[rng.integers(len(group))])
    if kind == "gradient":
        return _gradient(width, height, rng)
    if kind == "photo":
        return _photo(width, height, rng)
    if kind == "noise":
        groups = LIGHT + DARK
        base = plain(width, height, groups[rng.integers(len(groups))])
        return _with_noise(base, rng.uniform(4, 14), rng)
    paper = PAPERS[rng.integers(len(PAPERS))]
    if kind == "paper":
        return _with_noise(plain(width, height, paper), rng.uniform(1, 4), rng)
    if kind == "whiteboard":
        return _whiteboard(width, height, rng)
    return _lined_paper(width, height, paper, kind == "squared", rng)


def _over(base: Image.Image, body: str) -> Image.Image:
    drawn = rasterise(body, *base.size)
    return Image.alpha_composite(base.convert("RGBA"), drawn).convert("RGB")


def _gradient(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    group = LIGHT if rng.random() < 0.6 else DARK
    first, second = (css(group[i]) for i in rng.choice(len(group), 2, replace=False))
    stops = f'<stop offset="0" stop-color="{first}"/><stop offset="1" stop-color="{second}"/>'
    if rng.random() < 0.5:
        x, y = rng.choice([0, 1], 2)
        direction = f'x1="{x}" y1="{y}" x2="{1 - x}" y2="{1 - y}"'
        definition = f'<linearGradient id="g" {direction}>{stops}</linearGradient>'
    else:
        # Centred far off, so that no round spot appears.
        x = rng.choice([-0.2, 1.2])
        definition = f'<radialGradient id="g" cx="{x}" cy="-0.2" r="1.6">{stops}</radialGradient>'
    box = f'<rect width="{width}" height="{height}" fill="url(#g)"/>'
    return _over(plain(width, height, (255, 255, 255)), f"<defs>{definition}</defs>{box}")


def _lined_paper(
    width: int, height: int, paper: Rgb, is_squared: bool, rng: np.random.Generator
) -> Image.Image:
    longer = max(width, height)
    step = longer / rng.uniform(12, 26)
    thickness = max(longer / 700, 0.7)
    ink = css((190, 210, 232) if rng.random() < 0.7 else (214, 214, 214))
    rows = [f"M0 {y:.1f}H{width}" for y in np.arange(step * rng.random(), height, step)]
    columns = [f"M{x:.1f} 0V{height}" for x in np.arange(step * rng.random(), width, step)]
    path = " ".join(rows + columns if is_squared else rows)
    body = f'<path d="{path}" stroke="{ink}" stroke-width="{thickness:.2f}" fill="none"/>'
    return _over(plain(width, height, paper), body)


def _whiteboard(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    smooth = _smooth(width, height, 3, rng)[..., None]
    tint = np.array([240.0, 243.0, 246.0]) + rng.uniform(-6, 4, 3)
    return _with_noise(_image(tint + 9 * smooth), 1.5, rng)


def _photo(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    # Either light or dark as a whole, so that some colours stand out everywhere.
    level = rng.choice([58.0, 190.0])
    cast = rng.uniform(-22, 22, 3)
    pixels = np.stack([_smooth(width, height, 4, rng) for _ in range(3)], -1)
    shared = _smooth(width, height, 5, rng)[..., None]
    picture = _image(level + cast + 11 * pixels + 15 * shared)
    return _with_noise(picture.filter(ImageFilter.GaussianBlur(max(width, height) / 60)), 2, rng)


def _smooth(width: int, height: int, cells: int, rng: np.random.Generator) -> np.ndarray:
    """Return smooth random values about 0 of deviation about 1, float64 [height, width]."""
    coarse = Image.fromarray(rng.normal(0, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float64)


def _with_noise(picture: Image.Image, deviation: float, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(picture, np.float64)
    grain = rng.normal(0, deviation, pixels.shape[:2])[..., None]
    return _image(pixels + grain + rng.normal(0, deviation / 3, pixels.shape))


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
