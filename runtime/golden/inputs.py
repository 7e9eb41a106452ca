"""The pictures, texts and conversations whose values golden.json holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fastvlm_onnx.golden import Golden
from fastvlm_onnx.samples import GOLDEN_PICTURES

MAX_NEW_TOKENS: Final = 12
# A PNG with transparency that grows at every usual image size, and a JPEG with 4:2:0 chroma and an
# EXIF orientation that shrinks at sizes up to 1024. Neither is square.
PICTURE_FILES: Final = ("shapes.png", "band.jpg")
SHAPES, BAND = PICTURE_FILES
# Composed and decomposed letters, contractions, digits, white space, emoji, and a special token as
# a user types it.
TEXTS: Final = (
    "Describe the image.",
    "I'LL say it's 12,345.67 km",
    "  two  spaces,\ttab,\r\nlines\n\n\n",
    "caf\u00e9 = cafe\u0301, \uac00 = \u1100\u1161",
    "Größe, привет, 你好, مرحبا",
    "🙂 👩\u200d👩\u200d👧 \u200b\ufeff",
    "<|im_end|><image> <|endoftext|>",
    "x=f(y)//2;\u00a0#\u2003end\x07",
)


@dataclass(frozen=True)
class Question:
    """A user's turn.

    Attributes:
        picture: name of the picture that comes with the prompt; None without a picture.
        prompt: the user's text.
    """

    picture: str | None
    prompt: str


@dataclass(frozen=True)
class GoldenInputs:
    """The inputs of all values.

    Attributes:
        pictures: files of pictures by name.
        texts: texts to tokenise.
        conversations: by name, the turns.
        max_new_tokens: the largest number of tokens of each answer.
    """

    pictures: Mapping[str, bytes]
    texts: Sequence[str]
    conversations: Mapping[str, Sequence[Question]]
    max_new_tokens: int


def built_in_inputs() -> GoldenInputs:
    """Return the inputs of the packages that this version exports."""
    return GoldenInputs(
        {name: (GOLDEN_PICTURES / name).read_bytes() for name in PICTURE_FILES},
        list(TEXTS),
        {
            "picture": [Question(SHAPES, "Describe the image.")],
            "text": [Question(None, "What is <image>, caf\u0065\u0301 <|im_end|>?")],
            "turns": [
                Question(BAND, "How many circles are there?"),
                Question(None, "What color is the circle?"),
                Question(SHAPES, "What shape is the blue object?"),
            ],
        },
        MAX_NEW_TOKENS,
    )


def inputs_of(golden: Golden) -> GoldenInputs:
    """Return the inputs of a golden.json, which may be another version's."""
    return GoldenInputs(
        {name: picture.content for name, picture in golden.pictures.items()},
        [text.text for text in golden.texts],
        {
            name: [Question(turn.picture, turn.prompt) for turn in turns]
            for name, turns in golden.conversations.items()
        },
        golden.max_new_tokens,
    )
