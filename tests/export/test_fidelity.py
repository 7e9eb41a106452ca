"""predict.py's own chain, run with transformers: the same pixels, the same ids, the same draws."""

import io
import json
import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from slow_qwen2 import SlowQwen2
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from fastvlm_onnx.export.checkpoint.tokenizer_files import read_tokenizer
from fastvlm_onnx.runtime.engine.options import GenerationConfig
from fastvlm_onnx.runtime.engine.sampling import Sampler
from fastvlm_onnx.runtime.text.text_stream import TextStream
from fastvlm_onnx.runtime.text.tokenizer import TextTokenizer
from fastvlm_onnx.runtime.vision.image import preprocess, read_picture

# --- pictures ------------------------------------------------------------------------------------


def predict_py(image: Image.Image, size: int) -> np.ndarray:
    """Convert, pad with black to a square, CLIPImageProcessor: what is cast to half afterwards."""
    image = image.convert("RGB")
    side = max(image.size)
    square = Image.new("RGB", (side, side), (0, 0, 0))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    # Named after its back end since transformers 5.1.
    processor = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)(
        crop_size={"height": size, "width": size},
        size={"shortest_edge": size},
        image_mean=[0.0, 0.0, 0.0],
        image_std=[1.0, 1.0, 1.0],
    )
    return processor(square, return_tensors="np")["pixel_values"]


def noise(width: int, height: int, channels: int) -> np.ndarray:
    rng = np.random.default_rng(width * 1000 + height)
    shape = (height, width, channels) if channels > 1 else (height, width)
    return rng.integers(0, 256, shape, np.uint8)


def image_of(mode: str, width: int, height: int) -> Image.Image:
    """Noise in one of Pillow's modes."""
    if mode in ("I", "F", "I;16"):
        wide = noise(width, height, 1).astype(np.int32) * 257
        dtype = {"I": np.int32, "F": np.float32, "I;16": np.uint16}[mode]
        return Image.fromarray(wide.astype(dtype))
    if mode == "P with transparency":
        image = Image.fromarray(noise(width, height, 3), "RGB").quantize(64)
        image.info["transparency"] = 3
        return image
    return Image.fromarray(noise(width, height, 4), "RGBA").convert(mode)


MODES = ["RGB", "RGBA", "L", "LA", "P", "P with transparency", "CMYK", "YCbCr", "HSV"]
MODES += ["1", "I", "F", "I;16"]


@pytest.mark.filterwarnings("ignore:.*'mode' parameter is deprecated")
@pytest.mark.parametrize("mode", MODES)
def test_pixels_are_predict_py_s_in_every_mode(mode: str) -> None:
    image = image_of(mode, 70, 45)
    np.testing.assert_array_equal(preprocess(read_picture(image), 128), predict_py(image, 128))


def saved(mode: str, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image_of(mode, 47, 60).save(file, form, **options)
    return file.getvalue()


def animated(form: str) -> bytes:
    frames = [Image.fromarray(noise(47, 60 + i, 4)[:60], "RGBA") for i in range(3)]
    file = io.BytesIO()
    frames[0].save(file, form, save_all=True, append_images=frames[1:])
    return file.getvalue()


def turned(form: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved("RGB", form, exif=exif)


FILES = {
    "GIF, animated": lambda: animated("GIF"),
    "WebP, animated": lambda: animated("WEBP"),
    "PNG, animated": lambda: animated("PNG"),
    "GIF with a clear colour": lambda: saved("P", "GIF", transparency=3),
    "PNG with a clear colour": lambda: saved("RGB", "PNG", transparency=(1, 2, 3)),
    "PNG with clear palette entries": lambda: saved("P", "PNG", transparency=bytes(range(64))),
    "PNG, 16 bits": lambda: saved("I;16", "PNG"),
    "PNG, 1 bit": lambda: saved("1", "PNG"),
    "TIFF, float": lambda: saved("F", "TIFF"),
    "TIFF, CMYK": lambda: saved("CMYK", "TIFF"),
    "JPEG, CMYK": lambda: saved("CMYK", "JPEG"),
    "JPEG, turned": lambda: turned("JPEG"),
    "PNG, turned": lambda: turned("PNG"),
    "WebP, turned": lambda: turned("WEBP"),
}


@pytest.mark.filterwarnings("ignore:.*'mode' parameter is deprecated")
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("kind", FILES)
def test_pixels_are_predict_py_s_from_every_file(kind: str) -> None:
    content = FILES[kind]()
    with Image.open(io.BytesIO(content)) as image:
        expected = predict_py(image, 128)
    np.testing.assert_array_equal(preprocess(read_picture(content), 128), expected)


SIZES = [(1, 1), (64, 64), (63, 64), (200, 131), (131, 200), (1, 500), (500, 1), (333, 332)]
SIZES += [(300, 700), (257, 513), (1, 5000), (5000, 1)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("image_size", [64, 256])
def test_pixels_are_predict_py_s_at_every_size(size: tuple[int, int], image_size: int) -> None:
    image = Image.fromarray(noise(*size, 3))
    found = preprocess(read_picture(image), image_size)
    np.testing.assert_array_equal(found, predict_py(image, image_size))


# --- tokens --------------------------------------------------------------------------------------

SCRIPTS = [
    *[(0x00, 0x1F), (0x20, 0x7E), (0x7F, 0x9F), (0xA0, 0x24F), (0x300, 0x337), (0x339, 0x36F)],
    *[(0x370, 0x3FF), (0x400, 0x4FF), (0x530, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F)],
    *[(0xE00, 0xE7F), (0x10A0, 0x10FF), (0x1100, 0x11FF), (0x1E00, 0x1FFF), (0x2000, 0x206F)],
    *[(0x20A0, 0x214F), (0x2190, 0x22FF), (0x2460, 0x24FF), (0x3000, 0x30FF), (0x4E00, 0x9FFF)],
    *[(0xAC00, 0xD7A3), (0xF900, 0xFAFF), (0xFE00, 0xFE0F), (0xFF00, 0xFFEF)],
    *[(0x1D400, 0x1D4FF), (0x1F300, 0x1F6FF), (0x1F900, 0x1F9FF), (0x20000, 0x200FF)],
]
PIECES = [
    *["'s", "'T", "'re", "'VE", "'m", "'Ll", "'d", "’s", "don't", "I'M", "x'y", "'ſ"],
    *[" ", "  ", "\t", "\n", "\n\n", " \n ", "\r\n", "\u00a0", "\u3000", "\u200b", "\u2028"],
    *["0", "12", "3456789", "٣", "Ⅳ", "½", "1,000.50", "e", "\u0301", "e\u0301", "ﬁ", "Å"],
    *[
        "👩‍👩‍👧",
        "🇩🇪",
        "👍🏽",
        "☺️",
        "\x00",
        "\x1f",
        "\x7f",
        "\ufeff",
        "\ufffd",
        "...",
        "?!",
        "—",
        "_",
    ],
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Qwen2.5's, of which the last eight are not special: FastVLM-7B's twenty-two.
VISUAL = ["object_ref_start", "object_ref_end", "box_start", "box_end", "quad_start", "quad_end"]
VISUAL += ["vision_start", "vision_end", "vision_pad", "image_pad", "video_pad"]
PLAIN = ["fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep"]
ADDED = {
    "Qwen2": dict.fromkeys(SPECIAL, True),
    "Qwen2.5": dict.fromkeys([*SPECIAL, *(f"<|{name}|>" for name in VISUAL)], True)
    | dict.fromkeys(["<tool_call>", "</tool_call>", *(f"<|{name}|>" for name in PLAIN)], False),
}
ALL_ADDED = list(ADDED["Qwen2.5"])


def generated(count: int, seed: int, *extra: str) -> list[str]:
    """Strings of characters of all scripts, words, spaces and `extra`, mixed."""
    rng = random.Random(seed)

    def piece() -> str:
        kind = rng.random()
        if extra and kind < 0.2:
            return rng.choice(extra)
        if kind < 0.5:
            return rng.choice(PIECES)
        low, high = rng.choice(SCRIPTS)
        characters = (chr(rng.randint(low, high)) for _ in range(rng.randint(1, 6)))
        # An unassigned code point may be a letter to a library with a later Unicode.
        return "".join(c for c in characters if unicodedata.category(c) != "Cn")

    return ["".join(piece() for _ in range(rng.randint(1, 12))) for _ in range(count)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vocab.json and merges.txt, 4,000 tokens learned from such strings."""
    folder = tmp_path_factory.mktemp("trained")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=4000, initial_alphabet=alphabet, show_progress=False, min_frequency=2
    )
    tokenizer.train_from_iterator(generated(20_000, 1), trainer)
    tokenizer.model.save(str(folder))
    return folder


@pytest.fixture(scope="module", params=ADDED)
def added(request: pytest.FixtureRequest) -> dict[str, bool]:
    """The tokens added to the vocabulary -> whether they are special."""
    return ADDED[request.param]


@pytest.fixture(scope="module")
def vocabulary(
    trained: Path, added: dict[str, bool], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tokenizer's files as Apple's folders hold them."""
    folder = tmp_path_factory.mktemp("vocabulary")
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((trained / name).read_bytes())
    size = len(json.loads((trained / "vocab.json").read_text("utf-8")))
    ids = {token: size + i for i, token in enumerate(added)}
    (folder / "added_tokens.json").write_text(json.dumps(ids))
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_prefix_space": False,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "added_tokens_decoder": {
            str(i): {"content": token, "special": added[token], "normalized": False}
            for token, i in ids.items()
        },
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def qwen2(vocabulary: Path) -> transformers.PreTrainedTokenizerBase:
    return transformers.Qwen2Tokenizer.from_pretrained(vocabulary)


@pytest.fixture(scope="module")
def slow(vocabulary: Path) -> SlowQwen2:
    return SlowQwen2(vocabulary)


@pytest.fixture(scope="module")
def tokenizer(vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(read_tokenizer(vocabulary).text, encoding="utf-8")
    return TextTokenizer(path)


def test_ids_are_qwen2_s_on_ten_thousand_strings(
    tokenizer: TextTokenizer, qwen2: transformers.PreTrainedTokenizerBase, slow: SlowQwen2
) -> None:
    strings = generated(10_000, 2)
    expected = qwen2(strings, add_special_tokens=False)["input_ids"]
    for text, ids in zip(strings, expected, strict=True):
        assert tokenizer.encode(text) == ids == slow.encode(text), ascii(text)


def test_ids_are_qwen2_s_where_special_tokens_are_tokens(
    tokenizer: TextTokenizer, qwen2: transformers.PreTrainedTokenizerBase, slow: SlowQwen2
) -> None:
    strings = generated(2_000, 3, *ALL_ADDED)
    expected = qwen2(strings, add_special_tokens=False)["input_ids"]
    for text, ids in zip(strings, expected, strict=True):
        assert tokenizer.encode_template(text) == ids == slow.encode(text), ascii(text)


def test_ids_are_qwen2_s_where_special_tokens_are_text(
    tokenizer: TextTokenizer,
    qwen2: transformers.PreTrainedTokenizerBase,
    slow: SlowQwen2,
    added: dict[str, bool],
) -> None:
    strings = generated(2_000, 4, *ALL_ADDED)
    special = [token for token, is_special in added.items() if is_special]
    expected = qwen2(strings, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    for text, ids in zip(strings, expected, strict=True):
        assert tokenizer.encode(text) == ids == slow.encode(text, as_text=special), ascii(text)


def test_combining_marks_are_composed_before_special_tokens_are_found(
    tokenizer: TextTokenizer, slow: SlowQwen2
) -> None:
    # As in predict.py: the mark makes another character of the last one, and no token is left.
    text = "<|im_end|>\u0338 <|im_end|>"
    assert tokenizer.encode_template(text) == slow.encode(text)


def test_texts_are_qwen2_s_for_any_ids(
    tokenizer: TextTokenizer,
    qwen2: transformers.PreTrainedTokenizerBase,
    slow: SlowQwen2,
    added: dict[str, bool],
) -> None:
    rng = random.Random(5)
    special = [token for token, is_special in added.items() if is_special]
    for _ in range(1_000):
        lowest = rng.choice([0, len(qwen2) - len(added)])
        ids = [rng.randrange(rng.choice([0, lowest]), len(qwen2)) for _ in range(12)]
        expected = qwen2.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert tokenizer.decode(ids) == expected == slow.decode(ids, hidden=special)
        stream, cut = TextStream(tokenizer), rng.randint(1, 5)
        pieces = [stream.add(ids[i : i + cut]) for i in range(0, len(ids), cut)]
        assert "".join(pieces) + stream.finish() == expected


# --- draws ---------------------------------------------------------------------------------------


class Recorder:
    """Stands where the random generator does, to see what it is asked to draw from."""

    def choice(self, ids: np.ndarray, p: np.ndarray) -> int:
        self.ids, self.probabilities = ids, p
        return int(ids[0])


@pytest.mark.parametrize("temperature", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [0, 5, 50])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3])
@pytest.mark.parametrize(("min_p", "penalty"), [(0.0, 1.0), (0.1, 1.0), (0.02, 1.3), (0.0, 0.7)])
@pytest.mark.parametrize("decimals", [6, 1])
def test_probabilities_are_those_of_transformers_processors(
    temperature: float, top_k: int, top_p: float, min_p: float, penalty: float, decimals: int
) -> None:
    processors = [transformers.TemperatureLogitsWarper(temperature)]
    processors += [transformers.TopKLogitsWarper(top_k)] if top_k else []
    processors += [transformers.TopPLogitsWarper(top_p)] if top_p < 1 else []
    processors += [transformers.MinPLogitsWarper(min_p)] if min_p else []
    settings = GenerationConfig(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=penalty,
        seed=0,
    )
    sampler = Sampler(settings)
    sampler._rng = recorder = Recorder()
    rng = np.random.default_rng(6)
    drawn: list[int] = []
    for _ in range(20):
        # With one decimal many tie.
        logits = np.round(rng.standard_normal(200) * 3, decimals).astype(np.float32)
        scores = torch.from_numpy(logits)[None]
        if drawn:
            penalise = transformers.RepetitionPenaltyLogitsProcessor(penalty)
            scores = penalise(torch.tensor([drawn]), scores.clone())
        penalised = scores[0].numpy().copy()
        for processor in processors:
            scores = processor(None, scores)
        expected = torch.softmax(scores[0].double(), -1).numpy()
        drawn.append(sampler(logits))
        found = np.zeros(len(logits))
        found[recorder.ids] = recorder.probabilities
        # Of several that tie where top-p cuts, torch's sort keeps any.
        np.testing.assert_allclose(np.sort(found), np.sort(expected), atol=1e-6)
        above = penalised > penalised[expected > 0].min()
        np.testing.assert_allclose(found[above], expected[above], atol=1e-6)
