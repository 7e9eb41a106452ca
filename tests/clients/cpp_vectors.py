"""Write vectors.json: pixels, token ids and answers of Python's runtime, for ports to compare.

python tests/clients/cpp_vectors.py PACKAGE FOLDER
"""

import hashlib
import json
import random
import shutil
import sys
import unicodedata
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

import fastvlm_onnx
from fastvlm_onnx import FastVLM, Generation
from fastvlm_onnx.runtime.text.tokenizer import TextTokenizer
from fastvlm_onnx.runtime.vision.image import preprocess, read_picture
from fastvlm_onnx.samples import SAMPLE_PICTURES, SAMPLE_QUESTIONS

RANDOM_TEXTS: Final = 4000
RANDOM_IDS: Final = 500
MOST_QUESTIONS: Final = 16
SIZES: Final = (64, 256, 1024)
NASTY_TEXTS: Final = (
    "",
    " ",
    "\n",
    "  \n\n  ",
    "a  b   c",
    "a \n b\r\n\r\nc",
    "I'll I'LL we'Ve DON'T 's 'S 'ſ 'ſt x'ſy",
    "don't can''t '' 're'VE'm'D'll'l'r'v",
    "e\u0301 \u00e9 \u1e9b\u0323 \uac00 \u1100\u1161 \u212b \ufb01",
    "naïve café Ǆungla ﬁ ①②③ ⅷ ½ ٣٤ १२३",
    "日本語 中文 한국어 ไทย العربية עברית",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 👍🏽",
    "\x00\x01\x1c\x1d\x1e\x1f\x7f\x85\xa0\u200b\u2028\u2029\u3000\ufeff",
    "<|im_start|>user\n<|im_end|><|endoftext|><image>",
    "<|im_start|><|im_start|> <|im_end|>\n<|im_",
    "tabs\t\t\tand\x0bvertical\x0cfeeds",
    "1234567890 3.14159 1e-10 0x1F",
    "!!!???...\n\n\n---===***",
    " leading and trailing ",
    "a" * 3000,
    " " * 500 + "x",
    "\n" * 500,
    "ab'" * 400,
    "\U0010ffff\ue000\u0378",
)


def write_vectors(package: Path, folder: Path) -> None:
    """Write vectors.json and the pictures that it names into a folder.

    Args:
        package: an exported package; each of its variants answers.
        folder: takes the files; it is made if it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = _write_pictures(folder)
    tokenizer = TextTokenizer(package / "tokenizer.json")
    vectors = {
        "texts": [_tokens(tokenizer, text) for text in _texts()],
        "decoded": _decoded(tokenizer),
        "pictures": [_pixels(folder / name) for name in pictures],
        "answers": _answers(package),
        "chat": _chat(package),
    }
    content = json.dumps(vectors, ensure_ascii=False)
    (folder / "vectors.json").write_text(content, encoding="utf-8")


def _texts() -> list[str]:
    drawn = random.Random(20)
    # Characters that this Python's Unicode knows: later characters change classes between versions.
    known = [
        chr(code)
        for code in range(0x110000)
        if unicodedata.category(chr(code)) not in ("Cn", "Cs", "Co")
    ]
    alphabets = [
        [chr(code) for code in range(128)],
        list(" \t\r\n\x0b\x0c\x85\xa0\u2003\u2028\u3000'aZ1.-"),
        [*"'sStTrReEvVmMlLdDſ ", " '", "x'"],
        [c for c in known if unicodedata.category(c).startswith(("L", "M"))],
        [c for c in known if unicodedata.category(c).startswith(("N", "Z", "C"))],
        [
            *"aáe\u0301\u0323\u0308oO",
            *map(chr, range(0x300, 0x370)),
            *map(chr, range(0x1100, 0x1200)),
        ],
        known,
    ]
    special = ["<|im_end|>", "<|im_start|>", "<|endoftext|>"]
    texts = list(NASTY_TEXTS)
    for _ in range(RANDOM_TEXTS):
        alphabet = drawn.choice(alphabets) + (special if drawn.random() < 0.1 else [])
        texts.append("".join(drawn.choices(alphabet, k=drawn.randint(1, 40))))
    return texts


def _tokens(tokenizer: TextTokenizer, text: str) -> dict[str, Any]:
    ids = tokenizer.encode(text)
    return {
        "text": text,
        "ids": ids,
        "template_ids": tokenizer.encode_template(text),
        "decoded": tokenizer.decode(ids),
    }


def _decoded(tokenizer: TextTokenizer) -> list[dict[str, Any]]:
    """Random ids, whose bytes are no valid UTF-8 as a rule."""
    drawn = random.Random(21)
    lists = [
        [drawn.randrange(tokenizer.vocab_size) for _ in range(drawn.randint(1, 12))]
        for _ in range(RANDOM_IDS)
    ]
    return [{"ids": ids, "text": tokenizer.decode(ids)} for ids in lists]


def _write_pictures(folder: Path) -> list[str]:
    """Write the sample pictures, and pictures in every mode of PNG and JPEG."""
    names = []
    for source in SAMPLE_PICTURES.iterdir():
        if source.suffix in (".png", ".jpg"):
            shutil.copy(source, folder)
            names.append(source.name)
    noise = np.random.default_rng(22)
    rgba = noise.integers(0, 256, (37, 53, 4), np.uint8)
    smooth = Image.fromarray(np.ascontiguousarray(rgba[..., :3])).resize((300, 201))
    gray16 = noise.integers(0, 65536, (31, 44), np.uint16)
    made = {
        "rgba.png": Image.fromarray(rgba),
        "gray.png": Image.fromarray(rgba[..., 0]),
        "gray-alpha.png": Image.fromarray(rgba).convert("LA"),
        "bilevel.png": Image.fromarray(rgba[..., 0]).convert("1"),
        "palette.png": smooth.quantize(200),
        "palette-16.png": smooth.quantize(16),
        "gray16.png": Image.fromarray(gray16),
        "wide.png": Image.fromarray(noise.integers(0, 256, (3, 2000, 3), np.uint8)),
        "tall.png": Image.fromarray(noise.integers(0, 256, (1501, 2, 3), np.uint8)),
        "pixel.png": Image.new("RGB", (1, 1), (200, 100, 50)),
        "large.png": Image.fromarray(noise.integers(0, 256, (900, 1300, 3), np.uint8)),
        "color.jpg": smooth,
        "gray.jpg": smooth.convert("L"),
        "cmyk.jpg": smooth.convert("CMYK"),
        "progressive.jpg": smooth,
        "oriented.jpg": smooth,
    }
    for name, picture in made.items():
        options: dict[str, Any] = {"progressive": True} if name == "progressive.jpg" else {}
        if name == "oriented.jpg":
            options["exif"] = _exif(orientation=6)
        picture.save(folder / name, **options)
    return [*names, *made]


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif.tobytes()


def _pixels(path: Path) -> dict[str, Any]:
    image = read_picture(path)
    hashes = {str(size): _sha256(preprocess(image, size)) for size in SIZES}
    return {
        "file": path.name,
        "rgb_sha256": _sha256(np.asarray(image)),
        "pixel_values_sha256": hashes,
    }


def _sha256(array: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _answers(package: Path) -> dict[str, list[dict[str, Any]]]:
    """Answers of each variant to the sample questions."""
    questions = [
        (picture, prompt)
        for picture, prompts in json.loads(SAMPLE_QUESTIONS.read_text("utf-8")).items()
        for prompt in prompts
    ]
    asked = questions[:: max(1, len(questions) // MOST_QUESTIONS)][:MOST_QUESTIONS]
    answers: dict[str, list[dict[str, Any]]] = {}
    for variant in json.loads((package / "fastvlm.json").read_text("utf-8"))["variants"]:
        with fastvlm_onnx.load(package, precision=variant, providers="cpu") as model:
            answers[variant] = [_answer(model, picture, prompt) for picture, prompt in asked]
    return answers


def _answer(model: FastVLM, picture: str, prompt: str) -> dict[str, Any]:
    answer = model.generate(SAMPLE_PICTURES / picture, prompt)
    return {"picture": picture, "prompt": prompt} | _compared(answer)


def _compared(answer: Generation) -> dict[str, Any]:
    names = ("token_ids", "text", "finish_reason", "prompt_tokens")
    return {name: getattr(answer, name) for name in names}


def _chat(package: Path) -> dict[str, Any]:
    """A conversation of answers that are cut, some with an image, some without."""
    asked = [
        ("shapes.png", "Describe the image."),
        (None, "What color is the heart?"),
        ("shapes-wide.jpg", "Describe the image."),
        (None, "How many arrows are there?"),
    ]
    variant, most = "fp32", 4
    turns = []
    with fastvlm_onnx.load(package, precision=variant, providers="cpu") as model:
        chat = model.chat()
        for picture, prompt in asked:
            image = SAMPLE_PICTURES / picture if picture else None
            answer = chat.ask(prompt, image, max_new_tokens=most)
            turns.append({"picture": picture, "prompt": prompt} | _compared(answer))
    return {"variant": variant, "max_new_tokens": most, "turns": turns}


if __name__ == "__main__":
    write_vectors(Path(sys.argv[1]), Path(sys.argv[2]))
