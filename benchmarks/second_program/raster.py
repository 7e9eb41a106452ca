"""SVG text to pixels through resvg, and the fonts of the words.

Every font is a Debian package; `apt-get install` of PACKAGES brings all.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import resvg_py
from numpy.typing import NDArray
from PIL import Image

from fastvlm_onnx.errors import InputError


@dataclass(frozen=True)
class Font:
    """A font file, and the Debian package (version, licence) that brings it."""

    family: str
    is_bold: bool
    file: str
    package: str


# package: (version in Debian 12, licence)
PACKAGES = {
    "fonts-lato": ("2.0-2.1", "OFL-1.1"),
    "fonts-comic-neue": ("2.51-4", "OFL-1.1"),
    "fonts-cantarell": ("0.303.1-1", "OFL-1.1"),
    "fonts-inconsolata": ("001.010-6", "OFL-1.0"),
    "fonts-crosextra-carlito": ("20220224-1", "OFL-1.1"),
    "fonts-crosextra-caladea": ("20200211-1", "Apache-2.0"),
    "fonts-linuxlibertine": ("5.3.0-6", "GPL-2+ with font exception, or OFL-1.1"),
    "fonts-quicksand": ("0.2016-2.1", "OFL-1.1"),
    "fonts-sil-andika": ("6.101-2", "OFL-1.1"),
    "fonts-ebgaramond": ("0.016+git20210310.42d4f9f2-1", "OFL-1.1"),
    "fonts-rufscript": ("010-6", "GPL-3 with font exception"),
    "fonts-dosis": ("1.7-3", "OFL-1.1"),
    "fonts-play": ("1.002+20150307.1-0.1", "OFL-1.1"),
}
FOLDER = Path("/usr/share/fonts")
FONTS = (
    Font("Lato", False, "truetype/lato/Lato-Regular.ttf", "fonts-lato"),
    Font("Lato", True, "truetype/lato/Lato-Bold.ttf", "fonts-lato"),
    Font("Comic Neue", False, "opentype/comic-neue/ComicNeue-Regular.otf", "fonts-comic-neue"),
    Font("Comic Neue", True, "opentype/comic-neue/ComicNeue-Bold.otf", "fonts-comic-neue"),
    Font("Cantarell", False, "opentype/cantarell/Cantarell-Regular.otf", "fonts-cantarell"),
    Font("Cantarell", True, "opentype/cantarell/Cantarell-Bold.otf", "fonts-cantarell"),
    Font("Inconsolata", False, "truetype/inconsolata/Inconsolata.otf", "fonts-inconsolata"),
    Font("Carlito", True, "truetype/crosextra/Carlito-Bold.ttf", "fonts-crosextra-carlito"),
    Font("Caladea", False, "truetype/crosextra/Caladea-Regular.ttf", "fonts-crosextra-caladea"),
    Font("Caladea", True, "truetype/crosextra/Caladea-Bold.ttf", "fonts-crosextra-caladea"),
    Font(
        "Linux Libertine O",
        True,
        "opentype/linux-libertine/LinLibertine_RB.otf",
        "fonts-linuxlibertine",
    ),
    Font(
        "Linux Biolinum O",
        True,
        "opentype/linux-libertine/LinBiolinum_RB.otf",
        "fonts-linuxlibertine",
    ),
    Font("Quicksand", True, "truetype/quicksand/Quicksand-Bold.ttf", "fonts-quicksand"),
    Font("Andika", False, "truetype/andika/Andika-Regular.ttf", "fonts-sil-andika"),
    Font("Andika", True, "truetype/andika/Andika-Bold.ttf", "fonts-sil-andika"),
    Font("EB Garamond", True, "opentype/ebgaramond/EBGaramond12-Bold.otf", "fonts-ebgaramond"),
    Font("Rufscript", False, "truetype/rufscript/Rufscript010.ttf", "fonts-rufscript"),
    Font("Dosis", True, "opentype/dosis/Dosis-SemiBold.otf", "fonts-dosis"),
    Font("Play", True, "truetype/play/Play-Bold.ttf", "fonts-play"),
)


def check_installed() -> None:
    """Look for the fonts.

    Raises:
        InputError: a font is missing; the message has the command that installs it.
    """
    missing = sorted({font.package for font in FONTS if not (FOLDER / font.file).exists()})
    if missing:
        command = f"apt-get install --no-install-recommends {' '.join(missing)}"
        raise InputError(f"fonts are missing from {FOLDER}: run `{command}`")


def rasterise(body: str, width: int, height: int, font: Font | None = None) -> Image.Image:
    """Draw SVG elements on a transparent picture.

    Args:
        body: elements, in pixels of the picture.
        width: pixels of the picture.
        height: pixels of the picture.
        font: the font of `text` elements.

    Returns:
        The picture, RGBA.
    """
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">{body}</svg>'
    )
    files = [str(FOLDER / font.file)] if font else None
    drawn = resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True, font_files=files)
    return Image.open(io.BytesIO(drawn)).convert("RGBA")


def text_element(text: str, font: Font, attributes: str) -> str:
    """Return a `text` element whose baseline starts at the origin, font size 100."""
    weight = 700 if font.is_bold else 400
    return (
        f'<text font-family="{font.family}" font-weight="{weight}" font-size="100" '
        f"{attributes}>{text}</text>"
    )


def text_box(text: str, font: Font, attributes: str) -> NDArray[np.float64]:
    """Return the box of the ink at font size 100: left, top, right, bottom from the origin."""
    element = text_element(text, font, attributes)
    drawn = rasterise(f'<g transform="translate(100 200)">{element}</g>', 1100, 350, font)
    box = drawn.getchannel("A").getbbox()
    assert box is not None, (text, font)
    return np.array(box, np.float64) - (100, 200, 100, 200)
