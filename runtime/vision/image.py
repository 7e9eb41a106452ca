"""An image in any form -> pixel_values, with the arithmetic of Apple's predict.py.

Black borders make the image square, Pillow's bicubic filter resizes it as uint8, and a division by
255 follows. EXIF rotation is ignored unless the caller asks for it. The alpha channel is dropped,
16-bit values are clipped to 255, and nothing is cropped. predict.py does the same.

Source: apple/ml-fastvlm @592b4ad (predict.py, mm_utils.expand2square), transformers 4.48.3
(CLIPImageProcessor).
"""

import ctypes
import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError, _imaging

from fastvlm_onnx.errors import InputError
from fastvlm_onnx.untrusted_files import regular_file_size

Content = bytes | bytearray | memoryview
Picture = str | os.PathLike[str] | Content | IO[bytes] | Image.Image | NDArray[np.uint8]
FloatArray = NDArray[np.float32]

# Pillow refuses to decode a larger file. Arrays and Pillow images have the same limit here.
MAX_PIXELS = 178_956_970
# The longest side that a JPEG can have. Work and memory grow with the longer side.
MAX_SIDE = 65_535
# Pillow finds the format in a file's content. Its other decoders are for formats that no camera
# writes, and the EPS decoder starts Ghostscript on the file.
FORMATS: Final = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF")
# Decoders that some builds of Pillow have, and that pillow_heif registers.
PLUGIN_FORMATS: Final = ("AVIF", "HEIF")

# Rows of an image that are padded and narrowed at a time.
_STRIP_ROWS = 256

# uint8 -> float64 * (1/255) -> float32, the rounding of transformers' rescale, for each value.
_RESCALED = (np.arange(256) * (1 / 255)).astype(np.float32)


def read_picture(picture: Picture, *, orient: bool = False) -> Image.Image:
    """Open an image and decode it to RGB. The first frame of an animation is taken.

    Args:
        picture: a path, the bytes of a file, a binary file (read from its position to its end), a
            Pillow image, or a uint8 array [height, width, 3] in RGB order.
        orient: rotate the image as its EXIF data say. predict.py does not rotate.

    Raises:
        InputError: the file does not exist, is no regular file, has none of FORMATS, is cut off or
            empty, or the image exceeds MAX_PIXELS or MAX_SIDE.
    """
    name = str(Path(picture)) if isinstance(picture, str | os.PathLike) else "the picture"
    with _reading(name):
        if isinstance(picture, np.ndarray):
            return _from_array(picture, name)
        if isinstance(picture, Image.Image):
            return _decode(picture, name, orient)
        with _open_image(_open_file(picture)) as opened:
            return _decode(opened, name, orient)


def check_header(content: Content, *, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse a file that is no image, or too large an image, without decoding it.

    Args:
        content: the bytes of a file. A file that is cut off after its header passes.
        max_pixels: the largest width times height.

    Raises:
        InputError: the file has none of FORMATS, or the image exceeds the limit or MAX_SIDE.
    """
    name = "the picture"
    with _reading(name), _open_image(io.BytesIO(content)) as opened:
        _check_size(name, *opened.size, max_pixels)


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turn Pillow's errors into InputError."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{name}: no such picture; give the path of an image file.") from None
    except UnidentifiedImageError:
        raise InputError(
            f"{name}: not a picture in a known format; expected JPEG, PNG, WebP, GIF, BMP, TIFF "
            "or PPM."
        ) from None
    except Image.DecompressionBombError:
        raise InputError(
            f"{name}: has more than {MAX_PIXELS:,} pixels, the most that are read; make it smaller."
        ) from None
    # Pillow's decoders raise exceptions of almost any class for a damaged file.
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise InputError(
                f"{name}: cannot be read ({error.strerror}); expected an image file."
            ) from None
        raise InputError(
            f"{name}: cannot be decoded ({error}); the file may be cut off or damaged: "
            "save it again."
        ) from None


def _open_file(picture: Any) -> Path | io.BytesIO:
    if isinstance(picture, str | os.PathLike):
        regular_file_size(Path(picture), InputError)  # a FIFO would block
        return Path(picture)
    # Pillow would seek to the start of an open file, and cannot read a pipe.
    content = picture.read() if hasattr(picture, "read") else picture
    if not isinstance(content, Content):
        raise InputError(
            f"the picture is a {type(picture).__name__}; expected a path, bytes, a binary file, a "
            "Pillow image or a uint8 array."
        )
    return io.BytesIO(content)


def _open_image(file: Path | io.BytesIO) -> Image.Image:
    # Given a list of formats, Pillow would first import every decoder that it has.
    Image.preinit()
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        Image.init()  # Pillow registers its less common decoders here
        plugins = tuple(name for name in PLUGIN_FORMATS if name in Image.OPEN)
        if not plugins:
            raise
        return Image.open(file, formats=plugins)


def _decode(image: Image.Image, name: str, orient: bool) -> Image.Image:
    _check_size(name, *image.size)
    if image.format == "TIFF":
        _silence_libtiff()
    return (ImageOps.exif_transpose(image) if orient else image).convert("RGB")


@cache
def _silence_libtiff() -> None:
    """Keep Pillow's copy of libtiff from writing its errors to stderr; Pillow raises them too."""
    # Pillow silences libtiff's warnings itself. On Windows the function is not exported.
    with suppress(AttributeError, OSError):
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


def _from_array(array: NDArray[np.uint8], name: str) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise InputError(
            f"{name} is an array {array.dtype} {list(array.shape)}; "
            "expected uint8 [height, width, 3] in RGB order."
        )
    _check_size(name, array.shape[1], array.shape[0])
    return Image.fromarray(array)


def _check_size(name: str, width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    found = f"{name}: has {width} x {height} pixels"
    if width * height == 0:
        raise InputError(f"{found}; expected at least one.")
    if width * height > max_pixels:
        raise InputError(
            f"{found}, more than {max_pixels:,}, the most that are read; make it smaller."
        )
    if max(width, height) > MAX_SIDE:
        raise InputError(
            f"{found}; a side may have at most {MAX_SIDE:,} pixels: make the picture smaller."
        )


def preprocess(image: Image.Image, image_size: int) -> FloatArray:
    """Turn an RGB picture into pixel_values.

    Args:
        image: RGB, any size.
        image_size: side of the output in pixels, a multiple of 64.

    Returns:
        float32 [1, 3, image_size, image_size], values from 0 to 1.
    """
    return rescale(resize(image, image_size))


def resize(image: Image.Image, image_size: int) -> NDArray[np.uint8]:
    """Pad an RGB picture to a square and resize it: uint8 [image_size, image_size, 3]."""
    if image.width != image.height:
        image = _pad_and_narrow(image, image_size)
    return np.asarray(image.resize((image_size, image_size), Image.Resampling.BICUBIC))


def rescale(pixels: NDArray[np.uint8]) -> FloatArray:
    """Turn uint8 [side, side, 3] into pixel_values, float32 [1, 3, side, side] from 0 to 1."""
    return np.ascontiguousarray(_RESCALED[pixels].transpose(2, 0, 1))[None]


def _pad_and_narrow(image: Image.Image, width: int) -> Image.Image:
    """Add black borders up to a square, and resize its rows to `width` pixels.

    Pillow resizes rows first and columns second, so this is the first half of resizing the square.
    The square of a long thin picture does not fit in memory, so it is made strip by strip. Columns
    of the result that depend on the black borders only are black, and are not computed.

    Returns:
        RGB, `width` pixels wide and max(image.size) pixels high.
    """
    side = max(image.size)
    left, top = (side - image.width) // 2, (side - image.height) // 2
    scale = side / width
    # Pillow's bicubic filter reaches two pixels of the smaller grid to each side.
    reach = 2 * max(scale, 1) + 2
    # An edge between two groups of columns is exact in the float32 of Pillow's `box` argument, so
    # that the filter's weights are those of the whole row.
    groups = math.gcd(width, 64)
    first = max(0, math.floor((left - reach) / side * groups))
    last = min(groups, math.ceil((left + image.width + reach) / side * groups))
    box_left, box_right = side * first / groups, side * last / groups
    crop_left = max(0, math.floor(box_left - reach))
    crop_right = min(side, math.ceil(box_right + reach))
    columns = (last - first) * width // groups
    narrowed = Image.new("RGB", (width, side))
    for y in range(0, image.height, _STRIP_ROWS):
        bottom = min(y + _STRIP_ROWS, image.height)
        # Pixels of a crop that lie outside the picture are black.
        strip = image.crop((crop_left - left, y, crop_right - left, bottom))
        strip = strip.resize(
            (columns, strip.height),
            Image.Resampling.BICUBIC,
            box=(box_left - crop_left, 0, box_right - crop_left, strip.height),
        )
        narrowed.paste(strip, (first * width // groups, top + y))
    return narrowed
