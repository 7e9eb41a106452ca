"""The values that need no graph: hashes of pictures, and token ids."""

import base64
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastvlm_onnx.golden import GOLDEN_VERSION, Golden, GoldenPicture, GoldenText, GoldenTurn
from fastvlm_onnx.names import TOKENIZER_FILE
from fastvlm_onnx.package import Manifest
from fastvlm_onnx.runtime.golden.inputs import GoldenInputs, Question
from fastvlm_onnx.runtime.text.prompt import ImagePlace, PromptTemplate, question
from fastvlm_onnx.runtime.text.tokenizer import TextTokenizer
from fastvlm_onnx.runtime.vision.image import read_picture, rescale, resize
from fastvlm_onnx.version import __version__

# Pixels are hashed at these sizes too, so that a port's resizing is tested up and down.
USUAL_SIZES: Final = (256, 512, 1024)
LARGEST_PNG: Final = 50_000  # bytes
MEDIA_TYPES: Final = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg"}


def describe_inputs(folder: Path, manifest: Manifest, inputs: GoldenInputs) -> Golden:
    """Return the values of a package that need no graph.

    Args:
        folder: the package's folder; its tokenizer is read.
        manifest: the package's manifest.
        inputs: the pictures, texts and conversations.

    Raises:
        PackageError: the tokenizer cannot be read.
        InputError: a picture or a prompt cannot be used.
    """
    sizes = [manifest.image.default_size, *USUAL_SIZES]
    for variant in manifest.variants.values():
        sizes += map(int, variant.vision_encoder)
    sizes = list(dict.fromkeys(sizes))
    template = PromptTemplate(TextTokenizer(folder / TOKENIZER_FILE), manifest.prompt)
    context_length = manifest.decoder.context_length
    image_tokens = (manifest.image.default_size // manifest.image.patch_size) ** 2
    conversations, missing = {}, {}
    for name, questions in inputs.conversations.items():
        if len(questions) > 1 and not manifest.prompt.end_of_turn:
            missing[name] = "the package's prompt template has no turns"
            continue
        turns = [_turn(template, asked, is_first=i == 0) for i, asked in enumerate(questions)]
        if num_positions(turns, image_tokens, inputs.max_new_tokens) > context_length:
            missing[name] = f"the context of {context_length} positions is too short"
            continue
        conversations[name] = turns
    return Golden(
        GOLDEN_VERSION,
        f"fastvlm-onnx {__version__}",
        inputs.max_new_tokens,
        {name: describe_picture(content, sizes) for name, content in inputs.pictures.items()},
        [GoldenText(text, template.tokenizer.encode(text)) for text in inputs.texts],
        conversations,
        {},
        missing,
    )


def describe_picture(content: bytes, sizes: Sequence[int]) -> GoldenPicture:
    """Return a picture with the values of decoding and of resizing.

    Args:
        content: the bytes of a file.
        sizes: image sizes in pixels; the first is the size of the resized PNG.
    """
    image = read_picture(content)
    rgb = np.asarray(image)
    media_type = next((t for begin, t in MEDIA_TYPES.items() if content.startswith(begin)), "")
    hashes, first = {}, resize(image, sizes[0])
    for size in sizes:
        pixels = first if size == sizes[0] else resize(image, size)
        hashes[str(size)] = sha256(rescale(pixels).astype("<f4", copy=False))
    resized = _png(first)
    return GoldenPicture(
        file=base64.b64encode(content).decode(),
        media_type=media_type,
        width=image.width,
        height=image.height,
        rgb_sha256=sha256(rgb),
        rgb_png=None if media_type == "image/png" else base64.b64encode(_png(rgb)).decode(),
        pixel_values_sha256=hashes,
        resized_size=sizes[0],
        resized_png=base64.b64encode(resized).decode() if len(resized) <= LARGEST_PNG else None,
    )


def num_positions(turns: Sequence[GoldenTurn], num_image_tokens: int, max_new_tokens: int) -> int:
    """Return the positions that a conversation takes at most."""
    return sum(
        len(turn.before_image)
        + (0 if turn.picture is None else num_image_tokens)
        + len(turn.after_image)
        + max_new_tokens
        for turn in turns
    )


def sha256(array: NDArray[Any]) -> str:
    """Return the SHA-256 of an array's bytes, in hexadecimal digits."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return file.getvalue()


def _turn(template: PromptTemplate, asked: Question, *, is_first: bool) -> GoldenTurn:
    content = question(asked.prompt, 0 if asked.picture is None else 1)
    if is_first:
        parts = template.prompt(content)
    else:
        parts = [template.end_of_turn(), *template.user_turn(content)]
    before: list[int] = []
    after: list[int] = []
    filling = before
    for part in parts:
        if isinstance(part, ImagePlace):
            filling = after
        else:
            filling += part
    return GoldenTurn(asked.picture, asked.prompt, before, after)
