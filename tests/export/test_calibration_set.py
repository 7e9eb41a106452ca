"""Calibration sets: texts and images of a folder, and their sequences."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import refusal, run
from PIL import Image

from fastvlm_onnx import InputError, PackageError
from fastvlm_onnx.export.calibration.calibration_set import (
    BUILT_IN,
    LEAST_IMAGES,
    built_in_set,
    calibration_images,
    read_set,
)
from fastvlm_onnx.export.calibration.sequences import Limits, make_sequences
from fastvlm_onnx.export.pipeline import export_package
from fastvlm_onnx.export.sources.open_checkpoint import open_checkpoint
from fastvlm_onnx.package import read_manifest
from fastvlm_onnx.progress import no_progress
from fastvlm_onnx.variants import VARIANTS

TEXT = "The ferry left at noon, and two of the passengers had no tickets. "


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with LEAST_IMAGES images."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(LEAST_IMAGES):
        Image.new("RGB", (40 + i, 30), (20 * i, 90, 200)).save(folder / f"{i}.png")
    return folder


def test_images_stand_in_prompts_beside_texts(pictures: Path, texts: Path) -> None:
    for path in texts.iterdir():
        (pictures / path.name).write_bytes(path.read_bytes())
    checkpoint, found = open_checkpoint("demo"), read_set(pictures)
    with_images = make_sequences(checkpoint, found, 256, Limits(), no_progress)
    without = make_sequences(checkpoint, replace(found, images=()), 256, Limits(), no_progress)
    assert (with_images.texts, with_images.images) == (without.texts, LEAST_IMAGES)
    assert len(with_images.inputs_embeds) > len(without.inputs_embeds) + 16 * LEAST_IMAGES
    few = Limits(texts=3, images=2, least_tokens=1)
    at_most = make_sequences(checkpoint, found, 256, few, no_progress)
    assert (at_most.texts, at_most.images) == (3, 2)


def test_a_long_text_gives_several_sequences_of_at_most_the_limit() -> None:
    found = replace(built_in_set(), texts=[600 * TEXT], images=())
    sequences = make_sequences(open_checkpoint("demo"), found, 256, Limits(tokens=200), no_progress)
    assert sequences.texts == len(sequences.lengths) == 64
    assert max(sequences.lengths) == 200


def test_the_built_in_images_are_left_out_at_large_image_sizes() -> None:
    assert len(built_in_set().images_at(512)) == 6
    assert not built_in_set().images_at(1024)


def test_images_that_cannot_be_read_are_skipped_and_named(
    pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (pictures / "broken.jpg").write_bytes(b"no image")
    found = calibration_images(pictures)
    assert [path.name for path in found] == [f"{i}.png" for i in range(LEAST_IMAGES)]
    assert "broken.jpg: not a picture in a known format" in caplog.text
    (pictures / "0.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"pictures: found 7 images that can be read, expected at"):
        calibration_images(pictures)


Make = Callable[[Path], object]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder.rmdir(), "no such folder; expected a folder of texts"),
        (lambda folder: None, "found no texts and no images to calibrate with"),
        (lambda folder: (folder / "a.txt").write_text(" \n"), "found no texts and no images"),
        (lambda folder: (folder / "a.txt").write_text("short"), "tokens, expected at least 1,000"),
        (lambda folder: (folder / "a.txt").write_bytes(b"\xff\xfe\x00"), "expected UTF-8 text"),
        (lambda folder: (folder / "a.json").write_text("[1, 2]"), "expected a list of texts"),
        (lambda folder: (folder / "a.json").write_text('"text"'), "expected a list of texts"),
        (lambda folder: (folder / "a.json").write_text("[" * 9999), "expected UTF-8 text in JSON"),
        (lambda folder: (folder / "a.jsonl").write_text("{}"), "expected a text in each line"),
        (lambda folder: (folder / "a.jsonl").write_text("text"), "expected UTF-8 text in JSON"),
        (lambda folder: (folder / "a.json").write_text('["\\ud800"]'), "an unpaired surrogate"),
    ],
)
def test_a_set_that_cannot_be_used_is_one_line(tmp_path: Path, make: Make, message: str) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    make(folder)
    with pytest.raises(InputError, match=message) as caught:
        export_package("demo", tmp_path / "onnx", precisions=["int4"], calibrate=folder)
    assert "\n" not in str(caught.value)
    assert names_in(tmp_path) <= {"set"}


def test_the_command_refuses_a_set_without_texts(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    asked = ("export", "demo", "-o", tmp_path / "onnx", "--precision", "int4")
    assert "found no texts and no images" in refusal(*asked, "--calibrate", folder)
    (folder / "a.png").write_bytes(b"no image")
    done = run(*asked, "--calibrate", folder)
    skipped, refused = done.stderr.splitlines()
    assert done.returncode == 2
    assert "a.png: not a picture in a known format" in skipped
    assert "found 0 images that can be read, expected at least 8" in refused
    assert names_in(tmp_path) == {"set"}


def test_a_calibration_of_float_variants_is_refused(tmp_path: Path) -> None:
    line = refusal("export", "demo", "-o", tmp_path / "onnx", "--calibrate", "--precision", "fp16")
    assert "quantises int4 and int8 decoders, and fp16 has none; add one of int8, web, int4" in line
    assert not names_in(tmp_path)


def test_a_disk_without_room_is_refused_before_the_calibration(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = os.statvfs(tmp_path)  # a real result, with fewer free bytes
    full = type("Usage", (), {"total": usage.f_frsize * usage.f_blocks, "used": 0, "free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: full)
    with pytest.raises(PackageError, match="0 MB are free, and the package needs"):
        export_package("demo", tmp_path / "onnx", precisions=["int4"], calibrate=texts)
    assert not names_in(tmp_path)


def test_a_command_without_a_folder_takes_the_built_in_set(tmp_path: Path) -> None:
    done = run("export", "demo", "--precision", "fast", "--calibrate", "-o", tmp_path / "onnx")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    manifest = read_manifest(tmp_path / "onnx")
    assert manifest.variants["fast"].second_pass == VARIANTS["fast"].calibrated_second_pass
    record = manifest.calibration
    assert record is not None
    # fast has its int4 decoder whole and in parts.
    decoders = ["decoder.int4.onnx", "prefill.int8.onnx", "decoder_layers.int4.onnx"]
    assert (record.set, record.graphs) == (BUILT_IN, decoders)
