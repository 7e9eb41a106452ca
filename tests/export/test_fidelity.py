"""predict.py's own chain, run with transformers: the same pixels, the same ids, the same draws."""

import json
import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from fastvlm_onnx.export.tokenizer import read_tokenizer
from fastvlm_onnx.runtime.image import preprocess, read_picture
from fastvlm_onnx.runtime.sampling import Sampler, Sampling
from fastvlm_onnx.runtime.tokenizer import TextStream, TextTokenizer

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


@pytest.mark.parametrize(
    "size", [(1, 1), (64, 64), (63, 64), (200, 131), (131, 200), (1, 500), (500, 1), (333, 332)]
)
@pytest.mark.parametrize("image_size", [64, 256])
def test_pixels_are_predict_py_s_at_every_size(size: tuple[int, int], image_size: int) -> None:
    image = Image.fromarray(noise(*size, 3))
    found = preprocess(read_picture(image), image_size)
    np.testing.assert_array_equal(found, predict_py(image, image_size))


# --- tokens --------------------------------------------------------------------------------------

SCRIPTS = [
    *[(0x20, 0x7E), (0xA0, 0x24F), (0x370, 0x3FF), (0x400, 0x4FF), (0x530, 0x5FF), (0x600, 0x6FF)],
    *[(0x900, 0x97F), (0xE00, 0xE7F), (0x10A0, 0x10FF), (0x1100, 0x11FF), (0x1E00, 0x1FFF)],
    *[(0x2000, 0x206F), (0x20A0, 0x214F), (0x2190, 0x22FF), (0x2460, 0x24FF), (0x3000, 0x30FF)],
    *[(0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xF900, 0xFAFF), (0xFE00, 0xFE0F), (0xFF00, 0xFFEF)],
    *[(0x1D400, 0x1D4FF), (0x1F300, 0x1F6FF), (0x1F900, 0x1F9FF), (0x20000, 0x200FF)],
]
PIECES = [
    *["'s", "'T", "'re", "'VE", "'m", "'Ll", "'d", "’s", "don't", "I'M", "x'y"],
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
        return "".join(c for c in characters if unicodedata.category(c) != "Cs")

    return ["".join(piece() for _ in range(rng.randint(1, 12))) for _ in range(count)]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vocab.json, merges.txt and added_tokens.json with 4,000 tokens learned from such strings."""
    folder = tmp_path_factory.mktemp("vocabulary")
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=4000, initial_alphabet=alphabet, show_progress=False, min_frequency=2
    )
    trained.train_from_iterator(generated(20_000, 1), trainer)
    trained.model.save(str(folder))
    size = trained.get_vocab_size()
    added = {token: size + i for i, token in enumerate(SPECIAL)}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(i): {"content": token, "special": True, "normalized": False}
            for token, i in added.items()
        },
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def qwen2(vocabulary: Path) -> transformers.PreTrainedTokenizerBase:
    return transformers.Qwen2Tokenizer.from_pretrained(vocabulary)


@pytest.fixture(scope="module")
def tokenizer(vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(read_tokenizer(vocabulary).text)
    return TextTokenizer(path)


def test_ids_are_qwen2_s_on_ten_thousand_strings(
    tokenizer: TextTokenizer, qwen2: transformers.PreTrainedTokenizerBase
) -> None:
    strings = generated(10_000, 2)
    expected = qwen2(strings, add_special_tokens=False)["input_ids"]
    for text, ids in zip(strings, expected, strict=True):
        assert tokenizer.encode(text) == ids, repr(text)


def test_ids_are_qwen2_s_where_special_tokens_are_tokens(
    tokenizer: TextTokenizer, qwen2: transformers.PreTrainedTokenizerBase
) -> None:
    strings = generated(2_000, 3, *SPECIAL)
    expected = qwen2(strings, add_special_tokens=False)["input_ids"]
    for text, ids in zip(strings, expected, strict=True):
        assert tokenizer.encode_template(text) == ids, repr(text)


def test_texts_are_qwen2_s_for_any_ids(
    tokenizer: TextTokenizer, qwen2: transformers.PreTrainedTokenizerBase
) -> None:
    rng = random.Random(4)
    for _ in range(2_000):
        ids = [rng.randrange(len(qwen2)) for _ in range(rng.randint(1, 12))]
        expected = qwen2.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert tokenizer.decode(ids) == expected
        stream = TextStream(tokenizer)
        assert "".join(stream.add([i]) for i in ids) + stream.finish() == expected


# --- draws ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [0, 5, 50])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3])
def test_probabilities_are_those_of_transformers_processors(
    temperature: float, top_k: int, top_p: float
) -> None:
    rng = np.random.default_rng(6)
    logits = np.round(rng.standard_normal(200) * 3, 1).astype(np.float32)  # rounded: some tie
    processors = [transformers.TemperatureLogitsWarper(temperature)]
    processors += [transformers.TopKLogitsWarper(top_k)] if top_k else []
    processors += [transformers.TopPLogitsWarper(top_p)] if top_p < 1 else []
    scores = torch.from_numpy(logits)[None]
    for processor in processors:
        scores = processor(None, scores)
    expected = torch.softmax(scores[0].double(), -1).numpy()

    class Recorder:
        """Stands where the random generator does, to see what it is asked to draw from."""

        def choice(self, ids: np.ndarray, p: np.ndarray) -> int:
            self.found = np.zeros(len(logits))
            self.found[ids] = p
            return int(ids[0])

    sampler = Sampler(Sampling(temperature, top_k, top_p, seed=0))
    sampler._rng = recorder = Recorder()
    sampler(logits)
    np.testing.assert_allclose(recorder.found, expected, atol=1e-6)
