"""The image encoder: an image, or its pixel_values, as the features that the decoder sees."""

import hashlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastvlm_onnx.errors import InputError
from fastvlm_onnx.names import IMAGE_FEATURES, IMAGE_HIDDEN_STATES, PIXEL_VALUES
from fastvlm_onnx.runtime.arrays import FloatArray
from fastvlm_onnx.runtime.ort.session import GraphRunner
from fastvlm_onnx.runtime.vision.feature_cache import FeatureCache
from fastvlm_onnx.runtime.vision.image import Picture, read_picture, rescale, resize
from fastvlm_onnx.untrusted_files import regular_file_size


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """The features of one image, good for the model and the variant that made them.

    Attributes:
        array: float32 [1, num_image_tokens, hidden_size].
        image_size: side of the square input in pixels.
    """

    array: FloatArray = field(repr=False)
    image_size: int

    @cached_property
    def digest(self) -> str:
        """Hexadecimal BLAKE2b of the array: equal features have equal digests."""
        return digest_of(self.array)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        array = self.array if dtype is None else self.array.astype(dtype, copy=False)
        return array.copy() if copy else array


ImageInput = Picture | ImageFeatures
"""An image in any form that `read_picture` takes, or features that `encode_image` made of one."""


@dataclass(frozen=True, eq=False)
class PixelValues:
    """An image as the vision encoder reads it.

    Attributes:
        array: float32 [1, 3, image_size, image_size].
        pixels: the same before the division by 255, uint8 [image_size, image_size, 3].
    """

    array: FloatArray = field(repr=False)
    pixels: NDArray[np.uint8] = field(repr=False)

    @classmethod
    def of(cls, image: Image.Image, image_size: int) -> "PixelValues":
        """Preprocess an RGB image of any size."""
        pixels = resize(image, image_size)
        return cls(rescale(pixels), pixels)

    @cached_property
    def digest(self) -> str:
        """Hexadecimal BLAKE2b of the pixels, which takes a quarter of the array's time."""
        return digest_of(self.pixels)


def digest_of(array: NDArray[Any]) -> str:
    """Hexadecimal BLAKE2b of an array's bytes."""
    return hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=16).hexdigest()


class ImageEncoder:
    """The vision encoder and the projector of an open package. Any number of threads may use it.

    Attributes:
        image_size: side of the square input in pixels.
        num_image_tokens: positions that an image takes in the context.
        hidden_size: width of the features.
    """

    def __init__(
        self,
        vision_encoder: GraphRunner,
        projector: GraphRunner,
        *,
        image_size: int,
        num_image_tokens: int,
        hidden_size: int,
        cache_bytes: int,
    ) -> None:
        """Take the open graphs.

        Args:
            cache_bytes: features that are kept for images that come again; 0 keeps no features.
        """
        self._vision_encoder, self._projector = vision_encoder, projector
        self.image_size, self.num_image_tokens = image_size, num_image_tokens
        self.hidden_size = hidden_size
        self._cache = FeatureCache(cache_bytes)

    def read(
        self, image: ImageInput, *, orient: bool = False, use_cache: bool = False
    ) -> PixelValues | ImageFeatures:
        """Read an image, or check features; nothing is encoded yet.

        Args:
            image: an image as `read_picture` takes it, or features of this encoder.
            orient: turn the image as its EXIF data say.
            use_cache: return the cached features of the same file content or array, which is not
                decoded then.

        Raises:
            InputError: the image cannot be read, or the features have another shape or image size.
        """
        if isinstance(image, np.ndarray) and image.dtype == np.float32:
            warnings.warn(
                "image features as a bare array are deprecated and end with 0.3; give the "
                "ImageFeatures that encode_image returned, or ImageFeatures(array, image_size).",
                DeprecationWarning,
                stacklevel=4,
            )
            image = ImageFeatures(cast("FloatArray", image), self.image_size)
        if isinstance(image, ImageFeatures):
            return self._checked(image)
        if not use_cache:
            return PixelValues.of(read_picture(image, orient=orient), self.image_size)
        content, source = content_of(image)
        if source is None:
            return self.read(image, orient=orient)
        features = self._cache.find((source, orient))
        if features is not None:
            return ImageFeatures(features, self.image_size)
        try:
            picture = read_picture(content, orient=orient)
        except InputError:
            return self.read(image, orient=orient)  # an error that names the file
        read = PixelValues.of(picture, self.image_size)
        self._cache.name((source, orient), read.digest)
        return read

    def encode(
        self, image: PixelValues | ImageFeatures, *, use_cache: bool = True
    ) -> ImageFeatures:
        """Encode an image that was read; features pass through.

        Args:
            use_cache: look for the features of the same pixel_values, and keep new features. A
                cached array cannot be written to.
        """
        if isinstance(image, ImageFeatures):
            return image
        if use_cache:
            array = self._cache.get(image.digest, lambda: self.encode_pixel_values(image.array))
        else:
            array = self.encode_pixel_values(image.array)
        return ImageFeatures(array, self.image_size)

    def encode_pixel_values(self, pixel_values: FloatArray) -> FloatArray:
        """Encode a batch of images.

        Args:
            pixel_values: float32 [batch_size, 3, image_size, image_size] in 0..1.

        Returns:
            image_features, float32 [batch_size, num_image_tokens, hidden_size].

        Raises:
            InputError: pixel_values have another shape or type.
            ProviderError: the provider failed.
        """
        return self.run_projector(self.run_vision_encoder(pixel_values))

    def run_vision_encoder(self, pixel_values: FloatArray) -> FloatArray:
        """Run the vision encoder alone.

        Args:
            pixel_values: float32 [batch_size, 3, image_size, image_size] in 0..1.

        Returns:
            image_hidden_states, float32 [batch_size, num_image_tokens, channels].

        Raises:
            InputError: pixel_values have another shape or type.
            ProviderError: the provider failed.
        """
        side = self.image_size
        array = np.asarray(pixel_values)
        if array.dtype != np.float32 or array.ndim != 4 or array.shape[1:] != (3, side, side):
            found = f"{array.dtype} {list(array.shape)}"
            raise InputError(
                f"pixel_values are {found}, expected float32 [batch_size, 3, {side}, {side}]; "
                "give an image, or pixel_values of this image size."
            )
        return _run(self._vision_encoder, IMAGE_HIDDEN_STATES, PIXEL_VALUES, pixel_values)

    def run_projector(self, image_hidden_states: FloatArray) -> FloatArray:
        """Run the projector alone.

        Args:
            image_hidden_states: float32 [batch_size, num_image_tokens, channels].

        Returns:
            image_features, float32 [batch_size, num_image_tokens, hidden_size].

        Raises:
            ProviderError: the provider failed.
        """
        return _run(self._projector, IMAGE_FEATURES, IMAGE_HIDDEN_STATES, image_hidden_states)

    @property
    def cache_figures(self) -> tuple[int, int, int, int]:
        """Images asked for, images found, bytes held and bytes allowed of the cache of features."""
        cache = self._cache
        return cache.queries, cache.hits, cache.size_bytes, cache.max_bytes

    def forget(self) -> None:
        """Drop all cached features."""
        self._cache.clear()

    def _checked(self, features: ImageFeatures) -> ImageFeatures:
        expected = (1, self.num_image_tokens, self.hidden_size)
        # An ImageFeatures that a caller made may hold anything.
        array = np.asarray(features.array)
        if array.shape != expected or array.dtype != np.float32:
            raise InputError(
                f"image features are {array.dtype} {list(array.shape)}, expected float32 "
                f"{list(expected)}; encode the image with this model, at this image size."
            )
        if features.image_size != self.image_size:
            raise InputError(
                f"image features are of an image of {features.image_size} pixels, expected "
                f"{self.image_size}; encode the image with this model, at this image size."
            )
        return features


def _run(graph: GraphRunner, output: str, name: str, array: FloatArray) -> FloatArray:
    """Run a graph on a batch, or on one image at a time where the graph takes no batch."""
    if not graph.fixes_batch or len(array) == 1:
        return graph.run([output], {name: array})[0]
    rows = np.split(np.asarray(array), len(array))
    return np.concatenate([graph.run([output], {name: row})[0] for row in rows])


def content_of(image: Picture) -> tuple[Picture, str | None]:
    """An image with the digest of its content, None where it has no content of its own.

    Returns:
        The content of a file that can be read, else the image itself; and the digest.

    Raises:
        InputError: the path is no regular file.
    """
    content: Any = image
    if isinstance(image, str | os.PathLike):
        try:
            regular_file_size(Path(image), InputError)  # a FIFO would block
            content = Path(image).read_bytes()
        except (OSError, ValueError):
            return image, None  # reading the picture says why
    if isinstance(content, np.ndarray):
        return content, f"{content.dtype} {content.shape} {digest_of(content)}"
    if isinstance(content, bytes | bytearray | memoryview):
        return content, hashlib.blake2b(content, digest_size=16).hexdigest()
    return image, None


def images_of(image: ImageInput | Sequence[ImageInput] | None) -> list[ImageInput]:
    """The images of a question: no image, an image, or a list or tuple of images.

    Raises:
        InputError: the list is empty.
    """
    if image is None:
        return []
    if isinstance(image, list | tuple) and not image:
        raise InputError("the list of images is empty; give an image, or None for a prompt alone.")
    return list(image) if isinstance(image, list | tuple) else [cast("ImageInput", image)]
