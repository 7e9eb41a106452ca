"""golden.json: a right runtime agrees with it, and each usual mistake of a port does not."""

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import astuple, fields, replace
from pathlib import Path

import numpy as np
import pytest
from command_line import refusal, run
from installed_onnxruntime import skip_without
from PIL import Image

from fastvlm_onnx import PackageError, ProviderError
from fastvlm_onnx.golden import (
    Golden,
    GoldenAnswer,
    GoldenFeatures,
    GoldenPicture,
    GoldenTurn,
    GoldenVariant,
    read_golden,
)
from fastvlm_onnx.names import GOLDEN_FILE
from fastvlm_onnx.package import PromptFormat, read_manifest
from fastvlm_onnx.package_files import describe_file
from fastvlm_onnx.runtime.golden import describe, record
from fastvlm_onnx.runtime.golden.compare import Comparison, check_package, compare_variant
from fastvlm_onnx.runtime.golden.describe import describe_inputs
from fastvlm_onnx.runtime.golden.inputs import built_in_inputs, inputs_of
from fastvlm_onnx.runtime.golden.record import NotFiniteError, describe_features, record_golden
from fastvlm_onnx.runtime.golden.run import VariantRun
from fastvlm_onnx.runtime.ort.hardware import available_memory_bytes
from fastvlm_onnx.runtime.text.prompt import ImagePlace
from fastvlm_onnx.runtime.vision import image_encoder
from fastvlm_onnx.runtime.vision.image import read_picture, rescale
from fastvlm_onnx.samples import GOLDEN_PICTURES
from fastvlm_onnx.variants import CPU_VARIANTS, VARIANTS

ROOT = Path(__file__).resolve().parents[2]
Pixels = np.ndarray


@pytest.fixture(scope="module")
def golden(package: Path) -> Golden:
    return read_golden(package / GOLDEN_FILE)


def compared(folder: Path, golden: Golden) -> Comparison:
    return check_package(folder, read_manifest(folder), golden)


def png(text: str) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


# --- the values ----------------------------------------------------------------------------------


def test_golden_values_are_there_for_every_variant(variants_package: Path) -> None:
    golden = read_golden(variants_package / GOLDEN_FILE)
    assert tuple(golden.variants) == CPU_VARIANTS
    assert not golden.missing


def test_every_variant_agrees_with_the_golden_values_that_are_committed(
    variants_package: Path,
) -> None:
    skip_without("fast")  # needs the newest of all variants
    committed = read_golden(GOLDEN_PICTURES / GOLDEN_FILE)
    found = compared(variants_package, committed)
    assert found.differences == []
    assert tuple(found.tokens) == CPU_VARIANTS
    assert min(found.tokens.values()) > 20
    assert inputs_of(committed) == built_in_inputs()


def test_golden_pictures_lead_from_stage_to_stage(golden: Golden) -> None:
    for picture in golden.pictures.values():
        rgb = np.asarray(read_picture(picture.content))
        assert rgb.shape == (picture.height, picture.width, 3)
        assert sha256(rgb) == picture.rgb_sha256
        if picture.rgb_png is not None:
            assert np.array_equal(png(picture.rgb_png), rgb)
        assert picture.resized_png is not None
        resized = png(picture.resized_png)
        assert len(resized) == picture.resized_size
        digest = picture.pixel_values_sha256[str(picture.resized_size)]
        assert sha256(rescale(resized)) == digest


def test_golden_pictures_cover_transparency_exif_growing_and_shrinking(golden: Golden) -> None:
    png_file, jpeg_file = (
        Image.open(io.BytesIO(picture.content)) for picture in golden.pictures.values()
    )
    assert png_file.mode == "RGBA"
    assert png_file.getchannel("A").getextrema() != (255, 255)
    assert jpeg_file.getexif()[274] == 6
    assert max(png_file.size) < 256
    assert max(jpeg_file.size) > 1024
    assert {"256", "512", "1024"} <= set(golden.pictures["shapes.png"].pixel_values_sha256)


def test_golden_json_is_small_and_needs_no_other_file(variants_package: Path) -> None:
    path = variants_package / GOLDEN_FILE
    assert path.stat().st_size < 150_000
    assert path.name in read_manifest(variants_package).files
    json.loads(path.read_text("utf-8"))


def test_golden_tokens_are_compared_up_to_the_first_uncertain_token(golden: Golden) -> None:
    variant = golden.variants["fp32"]
    (answer,) = variant.answers["picture"]
    assert answer.compares_text
    assert answer.compared_tokens == len(answer.token_ids)
    assert [row.step for row in answer.logits] == [0, len(answer.token_ids)]
    assert answer.logits[0].top[0].id == answer.token_ids[0]


# --- the usual mistakes of a port ----------------------------------------------------------------


def padded(image: Image.Image, left: float, color: tuple[int, int, int] = (0, 0, 0)) -> Image.Image:
    side = max(image.size)
    square = Image.new("RGB", (side, side), color)
    square.paste(image, (int((side - image.width) * left), int((side - image.height) * left)))
    return square


def resampled(method: Image.Resampling) -> Callable[[Image.Image, int], Pixels]:
    return lambda image, size: np.asarray(padded(image, 0.5).resize((size, size), method))


def stretched(image: Image.Image, size: int) -> Pixels:
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def cut(image: Image.Image, size: int) -> Pixels:
    side, (width, height) = min(image.size), image.size
    left, top = (width - side) // 2, (height - side) // 2
    return stretched(image.crop((left, top, left + side, top + side)), size)


def resized_in_float(image: Image.Image, size: int) -> Pixels:
    """Resizes float32 values, and rounds once at the end."""
    bands = [
        np.asarray(band.convert("F").resize((size, size), Image.Resampling.BICUBIC))
        for band in padded(image, 0.5).split()
    ]
    return np.rint(np.clip(np.stack(bands, axis=-1), 0, 255)).astype(np.uint8)


CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32).reshape(1, 3, 1, 1)
WRONG_PIXELS = {
    "stretched": ("resize", stretched),
    "cut": ("resize", cut),
    "padded top left": ("resize", lambda i, s: stretched(padded(i, 0), s)),
    "padded grey": ("resize", lambda i, s: stretched(padded(i, 0.5, (122, 116, 104)), s)),
    "bilinear": ("resize", resampled(Image.Resampling.BILINEAR)),
    "nearest": ("resize", resampled(Image.Resampling.NEAREST)),
    "float resize": ("resize", resized_in_float),
    "BGR": ("rescale", lambda pixels: rescale(pixels[..., ::-1])),
    "CLIP's mean": ("rescale", lambda pixels: rescale(pixels) - CLIP_MEAN),
    "not divided": ("rescale", lambda pixels: rescale(pixels) * np.float32(255)),
}
WRONG_PROMPTS: dict[str, Callable[[PromptFormat], dict[str, str]]] = {
    "no line break after the image": lambda p: {"after_image": ""},
    "no system turn": lambda p: {"system": ""},
    "one break more": lambda p: {"after_image": f"{p.after_image}\n"},
}


@pytest.mark.parametrize("mistake", WRONG_PIXELS)
def test_golden_notices_wrong_pixels(
    mistake: str, package: Path, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, wrong = WRONG_PIXELS[mistake]
    for module in (describe, image_encoder):
        monkeypatch.setattr(module, step, wrong)
    differences = "\n".join(compared(package, golden).differences)
    for size in ("256", "512", "1024"):
        assert f"SHA-256 of pixel_values at {size} pixels" in differences
    assert ("image_features" in differences) or mistake == "float resize"


def test_golden_agrees_with_a_resize_of_the_whole_padded_square(
    package: Path, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mistakes above are planted in code that is right without them."""
    for module in (describe, image_encoder):
        monkeypatch.setattr(module, "resize", resampled(Image.Resampling.BICUBIC))
    assert compared(package, golden).differences == []


@pytest.mark.parametrize("mistake", WRONG_PROMPTS)
def test_golden_notices_a_wrong_prompt(mistake: str, package: Path, golden: Golden) -> None:
    manifest = read_manifest(package)
    prompt = replace(manifest.prompt, **WRONG_PROMPTS[mistake](manifest.prompt))
    found = check_package(package, replace(manifest, prompt=prompt), golden)
    differences = "\n".join(found.differences)
    assert "token ids" in differences
    assert "logits of step 0" in differences


def test_golden_notices_an_image_that_comes_last(
    package: Path, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    def image_last(prompt: str, num_images: int) -> Sequence[str | ImagePlace]:
        return [prompt, *map(ImagePlace, range(num_images))]

    monkeypatch.setattr(describe, "question", image_last)
    differences = "\n".join(compared(package, golden).differences)
    assert "token ids" in differences
    assert "logits of step 0" in differences


def test_golden_notices_a_cache_that_forgets_a_position(
    package: Path, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake in decoding changes logits after the first step alone."""
    from fastvlm_onnx.runtime.engine.language_model import LanguageModel

    decode = LanguageModel.decode_one_step

    def forgetful(self: LanguageModel, token_id: int, cache: object, **options: bool) -> np.ndarray:
        cache.length -= 1  # type: ignore[attr-defined]
        return decode(self, token_id, cache, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(LanguageModel, "decode_one_step", forgetful)
    assert compared(package, golden).differences


# --- missing values ------------------------------------------------------------------------------


def test_values_are_missing_where_memory_is_short(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "available_memory_bytes", lambda: 1_000_000)
    golden = record_golden(package, read_manifest(package))
    assert golden.variants == {}
    assert golden.missing == {"fp32": "it may need 0.1 GB of memory; 0.0 GB were free"}
    assert golden.conversations["picture"][0].after_image
    assert compared(package, golden).differences == []


def test_values_are_missing_where_onnxruntime_fails(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path, *_: object) -> None:
        raise ProviderError(f"{folder}: ONNX Runtime is 1.19, and fp32 needs at least 1.20")

    monkeypatch.setattr(record, "run_variant", fail)
    missing = record_golden(package, read_manifest(package)).missing
    assert missing == {"fp32": "the package: ONNX Runtime is 1.19, and fp32 needs at least 1.20"}


def test_values_are_missing_of_conversations_that_the_package_cannot_hold(package: Path) -> None:
    manifest = read_manifest(package)
    short = replace(manifest, decoder=replace(manifest.decoder, context_length=90))
    golden = describe_inputs(package, short, built_in_inputs())
    assert golden.missing == {"turns": "the context of 90 positions is too short"}
    no_turns = replace(manifest, prompt=replace(manifest.prompt, end_of_turn=""))
    golden = describe_inputs(package, no_turns, built_in_inputs())
    assert golden.missing == {"turns": "the package's prompt template has no turns"}
    assert set(golden.conversations) == {"picture", "text"}


def test_available_memory_is_the_smaller_of_the_machines_and_the_containers(
    tmp_path: Path,
) -> None:
    assert available_memory_bytes(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   8 kB\n")
    assert available_memory_bytes(tmp_path) == 8192
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    (tmp_path / "sys/fs/cgroup/memory.current").write_text("3000\n")
    assert available_memory_bytes(tmp_path) == 8192
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("5000\n")
    assert available_memory_bytes(tmp_path) == 2000


# --- bad files -----------------------------------------------------------------------------------


def damaged(golden: Path, edit: Callable[[dict], object], tmp_path: Path) -> Path:
    content = json.loads(golden.read_text("utf-8"))
    edit(content)
    path = tmp_path / GOLDEN_FILE
    path.write_text(json.dumps(content))
    return path


BAD_FILES = {
    "golden_version is 2, expected 1": lambda g: g.update(golden_version=2),
    "pictures is missing": lambda g: g.pop("pictures"),
    "pictures.shapes.png.file is not base64": lambda g: g["pictures"]["shapes.png"].update(
        file="?"
    ),
    "conversations.picture names 'shapes.png'": lambda g: g["pictures"].pop("shapes.png"),
    "variants.fp32.answers names 'text'": lambda g: g["conversations"].pop("text"),
}


@pytest.mark.parametrize("message", BAD_FILES)
def test_a_golden_json_that_breaks_its_schema(message: str, package: Path, tmp_path: Path) -> None:
    path = damaged(package / GOLDEN_FILE, BAD_FILES[message], tmp_path)
    with pytest.raises(PackageError) as caught:
        read_golden(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_golden_json_with_impossible_values_differs(package: Path, tmp_path: Path) -> None:
    def edit(content: dict) -> None:
        (answer,) = content["variants"]["fp32"]["answers"]["picture"]
        answer["logits"][0]["top"][0]["id"] = 10**9
        answer["logits"][1].update(std=0, top=[])
        features = content["variants"]["fp32"]["image_features"]
        features["band.jpg"]["shape"] = [1]
        features["shapes.png"]["samples"].pop()

    path = damaged(package / GOLDEN_FILE, edit, tmp_path)
    differences = "\n".join(compared(package, read_golden(path)).differences)
    assert "logits of step 0: found nan" in differences
    assert "logits of step 8: found 0 values" in differences
    assert "band.jpg, image_features, shape" in differences
    assert "shapes.png, image_features: found 17 values in golden.json, expected 18" in differences


# --- the command ---------------------------------------------------------------------------------


def test_inspect_golden_prints_agreement(package: Path) -> None:
    done = run("inspect", package, "--golden")
    assert done.returncode == 0, done.stderr
    assert "equal: 2 pictures decoded and resized, 8 texts and 3 conversations" in done.stdout
    assert "fp32: image_features within" in done.stdout


def test_inspect_golden_refuses_other_values_in_one_line(copied_package: Path) -> None:
    path = copied_package / GOLDEN_FILE
    path.write_text(path.read_text("utf-8").replace("A blue square", "A pink square"))
    content = json.loads((copied_package / "fastvlm.json").read_text("utf-8"))
    entry = describe_file(path)
    content["files"][GOLDEN_FILE] = {"bytes": entry.bytes, "sha256": entry.sha256}
    (copied_package / "fastvlm.json").write_text(json.dumps(content))
    line = refusal("inspect", copied_package, "--golden")
    assert "fp32, picture, turn 1, text: found 'A blue square and a red circle.'" in line
    assert "expected 'A pink square" in line


def test_inspect_golden_of_a_package_without_golden_json(old_package: Path) -> None:
    assert "has no golden.json" in refusal("inspect", old_package, "--golden")


def test_inspect_golden_and_json_are_refused_together(package: Path) -> None:
    assert "both --json and --golden" in refusal("inspect", package, "--golden", "--json")


def test_image_features_that_are_not_finite_differ() -> None:
    committed = read_golden(GOLDEN_PICTURES / GOLDEN_FILE).variants["fp32"]
    features = {
        name: np.full(wanted.shape, np.nan, np.float32)
        for name, wanted in committed.image_features.items()
    }
    result = Comparison()
    compare_variant(result, "fp32", VariantRun(features, {}), committed)
    assert [line.partition(":")[2] for line in result.differences] == [
        " found NaN or infinity, expected finite numbers"
    ] * 2


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(NotFiniteError):
        describe_features(np.full((1, 4, 8), np.nan, np.float32))


# --- the page ------------------------------------------------------------------------------------


def test_the_page_of_golden_values_names_every_key_and_every_tolerance() -> None:
    page = (ROOT / "docs/golden.md").read_text("utf-8")
    for part in (Golden, GoldenPicture, GoldenTurn, GoldenFeatures, GoldenAnswer, GoldenVariant):
        for field in fields(part):
            assert f"`{field.name}`" in page, field.name
    table = page.split("## Tolerances")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.+`) \| ([\d.]+) \| ([\d.]+) \|", table, re.MULTILINE)
    stated = {
        name: (float(features), float(logits))
        for names, features, logits in rows
        for name in re.findall(r"`(\w+)`", names)
    }
    expected = {name: astuple(spec.golden_tolerance) for name, spec in VARIANTS.items()}
    assert stated == {name: tuple(values) for name, values in expected.items()}
