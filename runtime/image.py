"""A picture in any form -> pixel_values, with the arithmetic of Apple's predict.py.

Black borders to a square, Pillow's bicubic on uint8, then /255. EXIF rotation is ignored unless
asked for, alpha is dropped, 16-bit values are clipped to 255, nothing is cropped: predict.py does
the same.

Source: apple/ml-fastvlm @592b4ad (predict.py, mm_utils.expand2square), transformers 4.48.3
(CLIPImageProcessor).
"""

import io
import os
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from fastvlm_onnx.errors import InputError

Content = bytes | bytearray | memoryview
Picture = str | os.PathLike[str] | Content | IO[bytes] | Image.Image | NDArray[np.uint8]
FloatArray = NDArray[np.float32]

# Where Pillow itself refuses to decode a file; arrays and Pillow images are held to the same.
MAX_PIXELS = 178_956_970

# uint8 -> float64 * (1/255) -> float32, the rounding of transformers' rescale, for each value once.
_RESCALED = (np.arange(256) * (1 / 255)).astype(np.float32)


def read_picture(picture: Picture, *, orient: bool = False) -> Image.Image:
    """Open a picture and decode it to RGB; of an animation, the first frame.

    Args:
        picture: a path, a file's bytes, a binary file (read from where it stands), a Pillow image,
            or uint8 [H, W, 3].
        orient: turn the picture as its EXIF data say; predict.py does not.

    Raises:
        InputError: no such file, not a picture, cut off, empty, or over MAX_PIXELS.
    """
    if isinstance(picture, np.ndarray):
        return _from_array(picture)
    name = "the picture"
    try:
        if isinstance(picture, Image.Image):
            return _decode(picture, name, orient)
        if isinstance(picture, Content):
            file: Any = io.BytesIO(picture)
        elif isinstance(picture, str | os.PathLike):
            file = Path(picture)
            name = str(picture)
        else:
            # Pillow would go back to the start, and could not read a pipe.
            file = io.BytesIO(picture.read())
        with Image.open(file) as opened:
            return _decode(opened, name, orient)
    except FileNotFoundError:
        raise InputError(f"{name}: no such picture; give the path of an image file.") from None
    except UnidentifiedImageError:
        raise InputError(
            f"{name}: not a picture that Pillow can read; expected JPEG, PNG, WebP or the like."
        ) from None
    except Image.DecompressionBombError:
        raise InputError(
            f"{name}: has more than the {MAX_PIXELS:,} pixels that are read; make it smaller."
        ) from None
    except (OSError, SyntaxError, ValueError) as error:
        # Pillow says a broken PNG with SyntaxError, and some broken headers with ValueError.
        raise InputError(
            f"{name}: cannot be decoded ({error}); the file may be cut off or damaged: "
            "save it again."
        ) from None


def _decode(image: Image.Image, name: str, orient: bool) -> Image.Image:
    width, height = image.size
    if width * height == 0:
        raise InputError(f"{name}: has {width} x {height} pixels; expected at least one.")
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{name}: has {width} x {height} pixels, more than the {MAX_PIXELS:,} that are read; "
            "make it smaller."
        )
    return (ImageOps.exif_transpose(image) if orient else image).convert("RGB")


def _from_array(array: NDArray[np.uint8]) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        raise InputError(
            f"the picture is an array {array.dtype} {list(array.shape)}; "
            "expected uint8 [height, width, 3] in RGB order."
        )
    return Image.fromarray(array)


def preprocess(image: Image.Image, image_size: int) -> FloatArray:
    """RGB picture -> pixel_values float32 [1, 3, image_size, image_size] in 0..1."""
    side = max(image.size)
    if image.width != image.height:
        square = Image.new("RGB", (side, side))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = square
    resized = image.resize((image_size, image_size), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(_RESCALED[np.asarray(resized)].transpose(2, 0, 1))[None]
