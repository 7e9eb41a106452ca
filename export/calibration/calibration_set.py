"""The texts and images that a calibration runs: the built-in set, or the files of a folder."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fastvlm_onnx.errors import InputError
from fastvlm_onnx.runtime.vision.image import read_picture
from fastvlm_onnx.samples import SAMPLE_PICTURES

BUILT_IN: Final = "built-in"
TEXTS_FILE: Final = Path(__file__).with_name("texts.json")
TEXT_SUFFIXES: Final = (".txt", ".json", ".jsonl")
IMAGE_SUFFIXES: Final = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# At larger sizes, the vision encoder takes seconds for an image.
LARGEST_BUILT_IN_SIZE: Final = 512
# Fewer images say little about the inputs of a graph.
LEAST_IMAGES: Final = 8

log = logging.getLogger("fastvlm_onnx")


@dataclass(frozen=True)
class CalibrationSet:
    """Texts and images.

    Attributes:
        name: the folder's name, or BUILT_IN.
        texts: texts that are not empty.
        images: image files that can be read.
        largest_image_size: the largest side of the vision encoder's input, in pixels, at which the
            images are used; None for any size.
    """

    name: str
    texts: Sequence[str]
    images: Sequence[Path]
    largest_image_size: int | None = None

    def images_at(self, image_size: int) -> Sequence[Path]:
        """Return the images that are used at one image size."""
        largest = self.largest_image_size
        return self.images if largest is None or image_size <= largest else ()


def built_in_set() -> CalibrationSet:
    """Return the texts that come with the exporter, and the sample pictures."""
    texts = json.loads(TEXTS_FILE.read_text("utf-8"))
    pictures = _files(SAMPLE_PICTURES, IMAGE_SUFFIXES)
    return CalibrationSet(BUILT_IN, texts, pictures, LARGEST_BUILT_IN_SIZE)


def read_set(folder: Path) -> CalibrationSet:
    """Read a folder of texts (.txt, .json, .jsonl) and images, searched at any depth.

    A .txt file is one text. A .json file is a list of texts. Each line of a .jsonl file is a JSON
    text.

    Raises:
        InputError: the folder or one of its text files cannot be read, or the folder holds no text
            and no image, or it holds some images and fewer than LEAST_IMAGES can be read.
    """
    _check_folder(folder)
    files = _files(folder, TEXT_SUFFIXES)
    texts = [text for file in files for text in _read_texts(file) if text.strip()]
    has_images = any(_files(folder, IMAGE_SUFFIXES))
    images = calibration_images(folder) if has_images else []
    if not texts and not images:
        raise InputError(
            f"{folder}: found no texts and no images to calibrate with; expected a folder with "
            f"{', '.join(TEXT_SUFFIXES)} files that hold text, or with images."
        )
    return CalibrationSet(folder.name, texts, images)


def calibration_images(folder: Path) -> list[Path]:
    """Return the image files of a folder, searched at any depth, that can be read.

    A warning in the library's log names each file that cannot be read.

    Raises:
        InputError: the folder cannot be read, or fewer than LEAST_IMAGES of its images can.
    """
    _check_folder(folder)
    images = []
    for file in _files(folder, IMAGE_SUFFIXES):
        try:
            read_picture(file)
        except InputError as error:
            log.warning("not used for the calibration: %s", error)
        else:
            images.append(file)
    if len(images) < LEAST_IMAGES:
        raise InputError(
            f"{folder}: found {len(images)} images that can be read, expected at least "
            f"{LEAST_IMAGES}; add images."
        )
    return images


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; expected a folder of texts and images to calibrate with. "
            "For the built-in set, put --calibrate last."
        )


def _files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    try:
        inside = (p for p in folder.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
        return sorted(inside)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be read ({error.strerror}); expected a folder of texts and images."
        ) from None


def _read_texts(file: Path) -> Iterator[str]:
    try:
        content = file.read_text("utf-8-sig")
        if file.suffix.lower() == ".txt":
            yield content
            return
        is_list = file.suffix.lower() == ".json"
        texts: Any = (
            json.loads(content)
            if is_list
            else [json.loads(line) for line in content.splitlines() if line.strip()]
        )
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{file}: cannot be read ({error}); expected UTF-8 text"
            f"{'' if file.suffix.lower() == '.txt' else ' in JSON'}."
        ) from None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        expected = "a list of texts" if is_list else "a text in each line"
        raise InputError(f"{file}: found other JSON, expected {expected}; convert the file.")
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"{file}: a text has an unpaired surrogate; expected valid Unicode."
            ) from None
        yield text
