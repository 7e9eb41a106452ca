"""The eleven basic color terms of English, and the RGB values that people give them."""

import random

Rgb = tuple[int, int, int]

# Values of paint programs, felt pens and CSS. A color is drawn between two values of one name.
COLORS: dict[str, tuple[Rgb, ...]] = {
    "red": ((255, 0, 0), (220, 40, 40), (237, 28, 36), (200, 20, 30), (230, 57, 70), (244, 67, 54)),
    "orange": ((255, 165, 0), (255, 140, 0), (245, 140, 30), (255, 127, 39), (243, 115, 33)),
    "yellow": ((255, 255, 0), (240, 215, 50), (255, 242, 0), (255, 235, 59), (255, 215, 0)),
    "green": (
        *((0, 128, 0), (0, 255, 0), (40, 160, 60), (34, 177, 76), (76, 175, 80), (0, 100, 0)),
        *((50, 205, 50), (120, 200, 80), (34, 139, 34)),
    ),
    "blue": (
        *((0, 0, 255), (45, 85, 220), (0, 0, 139), (33, 150, 243), (30, 144, 255), (0, 162, 232)),
        *((63, 72, 204), (100, 170, 240), (70, 130, 200), (0, 90, 180)),
    ),
    "purple": (
        *((128, 0, 128), (140, 55, 180), (156, 39, 176), (163, 73, 164), (103, 58, 183)),
        *((148, 0, 211), (120, 40, 160)),
    ),
    "pink": (
        *((255, 192, 203), (255, 105, 180), (255, 174, 201), (240, 98, 146), (255, 150, 190)),
        *((250, 130, 170), (255, 60, 160)),
    ),
    "brown": (
        *((139, 69, 19), (121, 85, 72), (150, 90, 50), (101, 67, 33), (185, 122, 87)),
        *((110, 60, 30), (160, 82, 45), (150, 75, 0)),
    ),
    "black": ((0, 0, 0), (10, 10, 10), (30, 30, 30), (40, 40, 45)),
    "white": ((255, 255, 255), (245, 245, 245), (250, 248, 240), (238, 238, 238)),
    "gray": ((128, 128, 128), (150, 150, 150), (105, 105, 105), (169, 169, 169), (95, 98, 102)),
}
COLOR_NAMES = tuple(COLORS)
# The brown of CSS is left out: people call it dark red.
JITTER = 8
CONTRAST = 125.0  # of `distance`; words need more, for their strokes are thin
WORD_CONTRAST = 165.0


def shade(rng: random.Random, name: str) -> Rgb:
    """Draw one RGB value of a color name."""
    first, second = rng.choice(COLORS[name]), rng.choice(COLORS[name])
    share = rng.random()
    red, green, blue = (
        min(255, max(0, round(a + (b - a) * share + rng.uniform(-JITTER, JITTER))))
        for a, b in zip(first, second, strict=True)
    )
    return red, green, blue


def distance(first: Rgb, second: Rgb) -> float:
    """Return the difference of two colors as the eye weighs it (the "redmean" approximation)."""
    mean = (first[0] + second[0]) / 2
    red, green, blue = (a - b for a, b in zip(first, second, strict=True))
    squares = (2 + mean / 256) * red**2 + 4 * green**2 + (2 + (255 - mean) / 256) * blue**2
    return float(squares**0.5)


def luminance(color: Rgb) -> float:
    return 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]


def contrasting(
    rng: random.Random, grounds: list[Rgb], contrast: float = CONTRAST
) -> tuple[str, Rgb]:
    """Draw a name and a shade of it that stands out from every color of the ground."""
    for relaxed in range(400):
        name = rng.choice(COLOR_NAMES)
        color = shade(rng, name)
        least = contrast * (1 - relaxed / 800)
        if all(
            distance(color, ground) > least
            and (abs(luminance(color) - luminance(ground)) > 32 or _differs_in_hue(color, ground))
            for ground in grounds
        ):
            return name, color
    return "black", (0, 0, 0)


def _differs_in_hue(first: Rgb, second: Rgb) -> bool:
    return distance(first, second) > 200
