"""The eleven basic colour terms: everyday examples of each, and how far apart two colours look."""

import numpy as np
from numpy.typing import NDArray

Rgb = tuple[int, int, int]

# CSS names, the palettes of paint programs, felt pens. Borderline examples are left out.
PALETTE: dict[str, tuple[Rgb, ...]] = {
    "red": ((255, 0, 0), (237, 28, 36), (200, 16, 46), (211, 47, 47), (220, 20, 30)),
    "orange": ((255, 165, 0), (255, 140, 0), (255, 127, 39), (245, 130, 32), (251, 140, 0)),
    "yellow": ((255, 255, 0), (255, 242, 0), (255, 221, 0), (253, 216, 53)),
    "green": ((0, 128, 0), (34, 139, 34), (34, 177, 76), (0, 200, 0), (76, 175, 80), (50, 205, 50)),
    "blue": (
        (0, 0, 255),
        (63, 72, 204),
        (30, 144, 255),
        (65, 105, 225),
        (0, 82, 165),
        (0, 120, 215),
    ),
    "purple": ((128, 0, 128), (163, 73, 164), (123, 31, 162), (148, 0, 211), (106, 27, 154)),
    "pink": ((255, 192, 203), (255, 105, 180), (255, 174, 201), (244, 143, 177), (255, 130, 171)),
    "brown": ((139, 69, 19), (150, 75, 0), (123, 63, 0), (121, 72, 40), (101, 60, 25)),
    "black": ((0, 0, 0), (15, 15, 15), (28, 28, 28)),
    "white": ((255, 255, 255), (252, 252, 252)),
    "gray": ((128, 128, 128), (127, 127, 127), (112, 112, 112), (150, 150, 150)),
}
COLORS = tuple(PALETTE)
# Fewer grounds let a white, yellow or pink shape stand out, so these are tried first more often.
WEIGHTS = np.array([{"white": 5.0, "yellow": 2.5, "pink": 2.0}.get(name, 1.0) for name in COLORS])
DARK = ("black", "brown", "purple", "blue", "gray")
# A filled shape on a light ground, and on any other ground.
LIGHT_DISTANCE, LIGHT_LIGHTNESS = 30.0, 14.0
OTHER_DISTANCE, OTHER_LIGHTNESS = 45.0, 24.0
# A stroke or a letter; a stroke on a dark ground needs more light.
THIN_DISTANCE, THIN_LIGHTNESS, THIN_LIGHTNESS_ON_DARK = 45.0, 25.0, 36.0


def lab(rgb: NDArray[np.generic] | Rgb) -> NDArray[np.float64]:
    """Convert sRGB 0 .. 255, shape [..., 3], to CIE L*a*b* under D65, float64 [..., 3]."""
    share = np.asarray(rgb, np.float64) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = linear @ np.array(to_xyz).T / (0.9505, 1.0, 1.089)
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = root[..., 0], root[..., 1], root[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def stands_out(rgb: Rgb, ground: NDArray[np.float64], is_thin: bool) -> bool:
    """Return whether nearly every pixel of the ground looks clearly different.

    Args:
        rgb: the colour of the object.
        ground: L*a*b* of the ground's pixels, float64 [..., 3].
        is_thin: the object is a stroke or a letter, which needs a difference in lightness too.
    """
    found = lab(rgb)
    distance = np.linalg.norm(ground - found, axis=-1)
    lightness = np.abs(ground[..., 0] - found[0])
    if rgb in PALETTE["brown"] and ground[..., 0].min() < 62:
        # Brown is dark orange: beside a dark ground it looks orange or is hard to see.
        return False
    if is_thin:
        least_lightness = np.where(ground[..., 0] < 30, THIN_LIGHTNESS_ON_DARK, THIN_LIGHTNESS)
        is_far = (distance >= THIN_DISTANCE) & (lightness >= least_lightness)
    else:
        is_light = ground[..., 0] > 80
        least = np.where(is_light, LIGHT_DISTANCE, OTHER_DISTANCE)
        least_lightness = np.where(is_light, LIGHT_LIGHTNESS, OTHER_LIGHTNESS)
        # Another hue is enough on a bright ground; on a dark ground it is hard to see.
        is_other_hue = (distance >= 65) & (ground[..., 0] > 30)
        is_far = (distance >= least) & ((lightness >= least_lightness) | is_other_hue)
    return bool(is_far.mean() > 0.95)


def css(rgb: Rgb) -> str:
    """Return `#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*rgb)
