"""`golden.json`: values by which a port of the runtime can check itself, as docs/golden.md says.

The dataclasses are the file's schema. The values come from `runtime/golden`. Standard library only.
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from fastvlm_onnx.errors import PackageError
from fastvlm_onnx.manifest_reader import parse
from fastvlm_onnx.names import GOLDEN_FILE
from fastvlm_onnx.untrusted_files import read_json_object

GOLDEN_VERSION: Final = 1
LARGEST_GOLDEN: Final = 4_000_000  # bytes; the exporter writes at most 150,000


@dataclass(frozen=True)
class GoldenTolerance:
    """The largest differences of a right port, in shares of a standard deviation.

    Attributes:
        image_features: of the features' standard deviation.
        logits: of the logits' standard deviation.
    """

    image_features: float
    logits: float


@dataclass(frozen=True)
class GoldenPicture:
    """A picture: its file, and the values of each stage before the vision encoder.

    Attributes:
        file: the file's bytes in base64.
        media_type: the file's format, such as "image/png".
        width: width of the decoded picture in pixels.
        height: height of the decoded picture in pixels.
        rgb_sha256: hash of the decoded picture, uint8 [height, width, 3].
        rgb_png: the decoded picture as a PNG file in base64; None where `file` is such a PNG.
        pixel_values_sha256: by image size, the hash of pixel_values, float32 [1, 3, S, S] in
            little-endian order.
        resized_size: the image size of `resized_png` in pixels.
        resized_png: the padded and resized picture as a PNG file in base64; None where it is large.
    """

    file: str
    media_type: str
    width: int
    height: int
    rgb_sha256: str
    rgb_png: str | None
    pixel_values_sha256: dict[str, str]
    resized_size: int
    resized_png: str | None

    @property
    def content(self) -> bytes:
        """The file's bytes.

        Raises:
            ValueError: `file` is not base64.
        """
        return base64.b64decode(self.file, validate=True)


@dataclass(frozen=True)
class GoldenText:
    """A user's text and its token ids."""

    text: str
    ids: list[int]


@dataclass(frozen=True)
class GoldenTurn:
    """A question, as text and as the ids that the decoder gets.

    Attributes:
        picture: name of the picture that comes with the prompt; None without a picture.
        prompt: the user's text.
        before_image: ids before the image features; all ids without a picture.
        after_image: ids after the image features; empty without a picture.
    """

    picture: str | None
    prompt: str
    before_image: list[int]
    after_image: list[int]


@dataclass(frozen=True)
class GoldenFeatures:
    """The image_features of a picture.

    Attributes:
        shape: [1, num_image_tokens, hidden_size].
        mean: the mean of all values.
        std: the standard deviation of all values.
        samples: values at equal distances of the flat array; sample i of n is at index
            i * (size - 1) // (n - 1).
    """

    shape: list[int]
    mean: float
    std: float
    samples: list[float]


@dataclass(frozen=True)
class GoldenLogit:
    """The logit of one token."""

    id: int
    logit: float


@dataclass(frozen=True)
class GoldenLogits:
    """The logits of one step.

    Attributes:
        step: number of the answer's tokens before this step; 0 for the logits of the prompt.
        std: the standard deviation over the vocabulary.
        top: the five largest logits, the largest first.
    """

    step: int
    std: float
    top: list[GoldenLogit]


@dataclass(frozen=True)
class GoldenAnswer:
    """The greedy answer to a turn.

    Attributes:
        logits: the logits of the first step, and of the last step that every right port reaches.
        token_ids: the answer's tokens, without the end token.
        text: the answer, without white space at its ends.
        finish_reason: "stop" at an end token, "length" at the largest number of tokens.
        compared_tokens: the number of tokens, from the first, that every right port gives. At the
            next step the two largest logits are closer than the tolerance.
        compares_text: every right port gives all tokens, the text and the finish_reason.
    """

    logits: list[GoldenLogits]
    token_ids: list[int]
    text: str
    finish_reason: str
    compared_tokens: int
    compares_text: bool


@dataclass(frozen=True)
class GoldenVariant:
    """The values of one variant.

    Attributes:
        image_size: side of the square input in pixels.
        onnxruntime: the version of ONNX Runtime that gave the values.
        tolerance: the largest differences of a right port.
        image_features: by the picture's name.
        answers: by the conversation's name, an answer for each turn.
    """

    image_size: int
    onnxruntime: str
    tolerance: GoldenTolerance
    image_features: dict[str, GoldenFeatures]
    answers: dict[str, list[GoldenAnswer]]


@dataclass(frozen=True)
class Golden:
    """The content of golden.json.

    Attributes:
        golden_version: the version of this schema.
        exporter: the program that wrote the file, with its version.
        max_new_tokens: the largest number of tokens of each answer.
        pictures: by name.
        texts: texts with their token ids; special tokens in them are characters.
        conversations: by name, the turns; a single question is a conversation of one turn.
        variants: by the variant's name.
        missing: why values are missing, by the name of a variant or a conversation.
    """

    golden_version: int
    exporter: str
    max_new_tokens: int
    pictures: dict[str, GoldenPicture]
    texts: list[GoldenText]
    conversations: dict[str, list[GoldenTurn]]
    variants: dict[str, GoldenVariant]
    missing: dict[str, str]

    def write(self, folder: Path) -> None:
        """Write golden.json into a package's folder."""
        text = json.dumps(asdict(self), ensure_ascii=False, allow_nan=False, indent=1) + "\n"
        # A list of numbers is one line.
        text = re.sub(r"(?<=\[)\s+([-+\d.e,\s]+?)\s+(?=\])", lambda m: _one_line(m[1]), text)
        (folder / GOLDEN_FILE).write_text(text, encoding="utf-8")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def read_golden(path: Path) -> Golden:
    """Read and check a golden.json.

    Raises:
        PackageError: the file is missing or breaks a rule of its schema.
    """
    advice = "export the package again"
    try:
        content = read_json_object(path, PackageError, advice, LARGEST_GOLDEN)
    except FileNotFoundError:
        raise PackageError(f"{path}: missing, expected the package's values; {advice}.") from None
    if content.get("golden_version") != GOLDEN_VERSION:
        raise PackageError(
            f"{path}: golden_version is {content.get('golden_version')!r}, expected "
            f"{GOLDEN_VERSION}; {advice}, or install a newer fastvlm-onnx."
        )
    golden: Golden = parse(content, Golden, path)
    _check_references(golden, path)
    return golden


def _check_references(golden: Golden, path: Path) -> None:
    """Raise PackageError for a picture or a conversation that the file lacks."""
    for name, picture in golden.pictures.items():
        try:
            _ = picture.content
        except (ValueError, binascii.Error):
            raise PackageError(
                f"{path}: pictures.{name}.file is not base64; export the package again."
            ) from None

    def check(where: str, names: Mapping[str, object], known: Mapping[str, object]) -> None:
        for name in names:
            if name not in known:
                raise PackageError(
                    f"{path}: {where} names {name!r}, which the file lacks; "
                    "export the package again."
                )

    for name, turns in golden.conversations.items():
        named = {turn.picture: None for turn in turns if turn.picture is not None}
        check(f"conversations.{name}", named, golden.pictures)
    for name, variant in golden.variants.items():
        check(f"variants.{name}.image_features", variant.image_features, golden.pictures)
        check(f"variants.{name}.answers", variant.answers, golden.conversations)
