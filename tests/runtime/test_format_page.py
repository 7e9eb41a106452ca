"""docs/format.md: its keys and constants are those of the code, and its arithmetic is Pillow's."""

import base64
import io
import json
import math
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from PIL import Image

from fastvlm_onnx import package as package_format
from fastvlm_onnx.agreement import VariantAgreement
from fastvlm_onnx.golden import read_golden
from fastvlm_onnx.names import GOLDEN_FILE
from fastvlm_onnx.package import Manifest
from fastvlm_onnx.runtime.engine.lm_head import CANDIDATES, SAFE_MARGIN
from fastvlm_onnx.runtime.engine.token_embedding import INT8_ZERO
from fastvlm_onnx.runtime.ort.saturation import EXACT_PRODUCTS, PROBE_SHAPE, PROBE_WEIGHT
from fastvlm_onnx.runtime.vision.image import preprocess, read_picture
from fastvlm_onnx.samples import GOLDEN_PICTURES
from fastvlm_onnx.variants import variants_for_provider

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/format.md").read_text("utf-8")


def section(heading: str) -> str:
    """The text under a heading, in one line."""
    text = PAGE.split(f"\n{heading}\n")[1]
    level = heading.split(" ")[0]
    return " ".join(re.split(rf"\n#{{1,{len(level)}}} ", text)[0].split())


def records(found: Any) -> set[type]:
    """Every dataclass that a type is made of."""
    if is_dataclass(found):
        hints = get_type_hints(found, vars(package_format)).values()
        return {found} | set().union(*map(records, hints))
    return set().union(*map(records, get_args(found)))


RECORDS = sorted(records(Manifest), key=lambda record: record.__name__)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_the_format_page_names_every_key_of_the_manifest(record: type) -> None:
    assert record is not VariantAgreement or len(fields(record)) > 5
    for field in fields(record):
        assert f"`{field.name}`" in PAGE, field.name


# --- pixels, as the page describes them ----------------------------------------------------------


def weight(x: float) -> float:
    a, x = -0.5, abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


def resized_rows(pixels: np.ndarray, size: int) -> np.ndarray:
    """One pass along the second axis of uint8 [rows, n, 3]."""
    n = pixels.shape[1]
    if n == size:
        return pixels
    scale = n / size
    stretch = max(scale, 1.0)
    support = 2 * stretch
    result = np.empty((len(pixels), size, 3), np.uint8)
    for i in range(size):
        center = (i + 0.5) * scale
        first, end = max(0, int(center - support + 0.5)), min(n, int(center + support + 0.5))
        weights = [weight((j - center + 0.5) / stretch) for j in range(first, end)]
        shares = [w / sum(weights) for w in weights]
        whole = [int(share * 2**22 + math.copysign(0.5, share)) for share in shares]
        sums = np.tensordot(pixels[:, first:end].astype(np.int64), whole, axes=(1, 0))
        result[:, i] = np.clip((2**21 + sums) >> 22, 0, 255)
    return result


def pixel_values(rgb: np.ndarray, size: int) -> np.ndarray:
    height, width = rgb.shape[:2]
    side = max(height, width)
    square = np.zeros((side, side, 3), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = rgb
    across = resized_rows(square, size)
    resized = resized_rows(across.transpose(1, 0, 2), size).transpose(1, 0, 2)
    return (resized / 255).astype(np.float32).transpose(2, 0, 1)[None]


@pytest.mark.parametrize("size", [256, 512])
def test_pixels_by_the_rules_of_the_format_page_are_those_of_the_runtime(size: int) -> None:
    for picture in read_golden(GOLDEN_PICTURES / GOLDEN_FILE).pictures.values():
        decoded = base64.b64decode(picture.rgb_png or picture.file)
        rgb = np.asarray(Image.open(io.BytesIO(decoded)))[..., :3]
        expected = preprocess(read_picture(picture.content), size)
        assert np.array_equal(pixel_values(rgb, size), expected)


def test_a_product_with_the_reciprocal_is_wrong_in_as_many_values_as_the_page_says() -> None:
    values = np.arange(256)
    right = (values / 255).astype(np.float32)
    wrong = values.astype(np.float32) * np.float32(1 / 255)
    (count,) = re.findall(r"wrong in the last bit for (\d+) of 256", section("### Pixels"))
    assert (right != wrong).sum() == int(count)


# --- constants -----------------------------------------------------------------------------------


def test_the_format_page_states_the_constants_of_the_code() -> None:
    longest = f"at most {package_format.LONGEST_CONTEXT:,}"
    assert longest in section("### `decoder`")
    products = section("### int8 products")
    assert f"gives {PROBE_SHAPE[1]} · {PROBE_WEIGHT} · 255" in products
    assert f"`{EXACT_PRODUCTS[0]}` = `{EXACT_PRODUCTS[1]}`" in products
    answer = section("### Logits and the answer")
    assert f"ask for {CANDIDATES[0]} candidates, then for {CANDIDATES[1]}" in answer
    assert f">= {SAFE_MARGIN:g} * rms(" in section("#### A decoder in parts")
    assert f"`(v - {INT8_ZERO:g}) · scale[id, i div block]`" in section("### Embeddings")


def test_the_format_page_states_the_order_of_variants_on_the_cpu() -> None:
    stated = re.findall(r"`(\w+)`", section("### Which variant").split(", and whose")[0])
    assert tuple(stated) == variants_for_provider("cpu")[: len(stated)]


def test_the_embeddings_begin_where_the_format_page_says(variants_package: Path) -> None:
    (offset,) = re.findall(r"at byte (\d+)", section("### Embeddings"))
    for path in variants_package.glob("embed_tokens*.npy"):
        mapped: Any = np.load(path, mmap_mode="r")
        assert mapped.offset == int(offset)
        assert mapped.flags.c_contiguous
        assert path.read_bytes()[:8] == b"\x93NUMPY\x01\x00"


def test_tokenizer_json_has_the_splitting_rule_where_the_format_page_says(package: Path) -> None:
    from fastvlm_onnx.tokenizer_format import QWEN2_SPLIT

    assert "`pre_tokenizer.pretokenizers[0].pattern.Regex`" in section("### Token ids")
    content = json.loads((package / "tokenizer.json").read_text("utf-8"))
    assert content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] == QWEN2_SPLIT
