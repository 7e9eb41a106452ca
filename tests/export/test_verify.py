"""Packages compared with PyTorch: unchanged packages agree, and changes are reported by stage."""

import json
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastvlm_onnx import (
    CheckpointError,
    FastVLM,
    FastVLMError,
    InputError,
    PackageError,
    PromptTooLongError,
)
from fastvlm_onnx.agreement import Agreement, Tolerance
from fastvlm_onnx.export.pipeline import export_package
from fastvlm_onnx.export.sources.open_checkpoint import open_checkpoint
from fastvlm_onnx.export.verification import reference_run, verify
from fastvlm_onnx.export.verification.verify import verify_package
from fastvlm_onnx.package import read_manifest
from fastvlm_onnx.runtime.vision.image import preprocess, read_picture
from fastvlm_onnx.runtime.vision.image_encoder import ImageEncoder

STAGES = ["pixel_values", "image_hidden_states", "image_features", "logits"]
Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def agreement(package: Path) -> Agreement:
    return verify_package(package, "demo")


@pytest.fixture
def no_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test when the reference runs: refusals must come before its minutes of work."""

    def fail(*_: object) -> None:
        pytest.fail("the reference was run")

    monkeypatch.setattr(verify, "run_reference", fail)


# --- agreement -----------------------------------------------------------------------------------


def test_the_built_in_model_agrees_at_every_stage(agreement: Agreement) -> None:
    assert agreement.outside == []
    rows = agreement.variants["fp32"].stages
    assert [row.stage for row in rows] == STAGES
    assert rows[0].relative_error == 0.0
    # Not zero either: two implementations that never differ would be one.
    assert all(0 < row.relative_error < 1e-5 for row in rows[1:])


def test_every_sample_picture_is_asked_its_first_question(
    agreement: Agreement, questions: dict[str, dict[str, str]]
) -> None:
    asked = [(row.picture, row.prompt) for row in agreement.variants["fp32"].prompts]
    assert asked == [(name, next(iter(answers))) for name, answers in questions.items()]


def test_an_answer_is_compared_up_to_its_eos_token(
    agreement: Agreement, model: FastVLM, questions: dict[str, dict[str, str]]
) -> None:
    row = agreement.variants["fp32"].prompts[0]
    picture = verify.SAMPLE_PICTURES / row.picture
    answer = model.generate(picture, row.prompt)
    assert answer.finish_reason == "stop"
    assert row.steps == len(answer.token_ids) + 1  # and the eos
    assert (row.agreeing_steps, row.first_difference) == (row.steps, None)


def test_each_prompt_is_asked_about_each_picture(package: Path, picture: Path) -> None:
    other = verify.SAMPLE_PICTURES / "word.png"
    agreement = verify_package(
        package, "demo", images=[picture, other], prompts=["One?", "Two?"], steps=2
    )
    rows = agreement.variants["fp32"].prompts
    assert [(row.picture, row.prompt, row.steps) for row in rows] == [
        (file.name, prompt, 2) for file in (picture, other) for prompt in ("One?", "Two?")
    ]


@pytest.mark.parametrize(
    ("mode", "size"), [("RGB", (70, 33)), ("RGBA", (31, 90)), ("L", (64, 64)), ("1", (300, 10))]
)
def test_pictures_become_the_pixel_values_of_transformers(
    tmp_path: Path, mode: str, size: tuple[int, int]
) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (*size[::-1], 4), np.uint8)
    path = tmp_path / "picture.png"
    Image.fromarray(noise).convert(mode).save(path)
    expected = reference_run.reference_pixel_values(path, 128)
    np.testing.assert_array_equal(preprocess(read_picture(path), 128), expected)


def test_progress_counts_pictures_and_prompts_on_both_sides(package: Path, picture: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    verify_package(
        package,
        "demo",
        images=[picture],
        prompts=["Why?"],
        steps=1,
        progress=lambda *call: calls.append(call),
    )
    assert calls == [
        ("PyTorch, loading", 0, 4),
        (f"PyTorch, {picture.name}", 0, 4),
        ("PyTorch, Why?", 1, 4),
        (f"fp32, {picture.name}", 2, 4),
        ("fp32, Why?", 3, 4),
        ("done", 4, 4),
    ]


def test_the_reference_model_is_freed_before_a_variant_is_loaded(
    package: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref] = []

    class Watched(reference_run.ReferenceFastVLM):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)
            made.append(weakref.ref(self))

    def load(*arguments: object, **options: object) -> FastVLM:
        assert [reference() for reference in made] == [None]
        return opened(*arguments, **options)

    opened = verify.load
    monkeypatch.setattr(reference_run, "ReferenceFastVLM", Watched)
    monkeypatch.setattr(verify, "load", load)
    verify_package(package, "demo", images=[picture], steps=1)
    assert made


def test_verify_restores_the_number_of_torch_threads(package: Path, picture: Path) -> None:
    before = torch.get_num_threads()
    verify_package(package, "demo", images=[picture], steps=1, threads=before + 1)
    assert torch.get_num_threads() == before


# --- disagreement --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "stage"),
    [
        ("model.vision_tower.vision_tower.model.network.2.0.convffn.fc1.weight", STAGES[1]),
        ("model.mm_projector.2.weight", STAGES[2]),
        ("model.layers.1.self_attn.o_proj.weight", STAGES[3]),
        ("model.embed_tokens.weight", STAGES[3]),
    ],
)
def test_a_changed_tensor_fails_its_own_stage_and_every_later_stage(
    tensor: str, stage: str, scale_demo: Callable[[str], Path], tmp_path: Path
) -> None:
    export_package(scale_demo(tensor), tmp_path / "onnx")
    agreement = verify_package(tmp_path / "onnx", "demo")
    named = [found.split(":")[1].strip() for found in agreement.outside]
    assert [name for name in named if name in STAGES] == STAGES[STAGES.index(stage) :]


def test_one_wrong_pixel_fails_the_pixel_values_stage(
    package: Path,
    picture: Path,
    monkeypatch: pytest.MonkeyPatch,
    set_tolerance: Callable[[Tolerance], None],
) -> None:
    def spoil(*arguments: object) -> np.ndarray:
        pixel_values = preprocess(*arguments)
        pixel_values[0, 0, 9, 9] += 1 / 255
        return pixel_values

    monkeypatch.setattr(verify, "preprocess", spoil)
    set_tolerance(Tolerance(1.0, 0.0, 100.0, 0.0))
    (found,) = verify_package(package, "demo", images=[picture], steps=1).outside
    assert found.startswith("fp32: pixel_values: relative error ")


def test_nonfinite_activations_are_reported_and_stored_as_valid_json(
    package: Path, copied_package: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflow(self: ImageEncoder, image_hidden_states: np.ndarray) -> np.ndarray:
        return np.full_like(project(self, image_hidden_states), np.inf)

    project = ImageEncoder.run_projector
    monkeypatch.setattr(ImageEncoder, "run_projector", overflow)
    agreement = verify_package(package, "demo", images=[picture], steps=2)
    assert "fp32: image_features: relative error not finite, at most 0.0001" in agreement.outside
    assert any("KL divergence not finite" in found for found in agreement.outside)
    replace(read_manifest(package), measured=agreement.variants).write(copied_package)
    text = (copied_package / "fastvlm.json").read_text("utf-8")
    json.loads(text, parse_constant=pytest.fail)  # NaN and Infinity are no JSON
    assert read_manifest(copied_package).measured == agreement.variants


# --- refusals ------------------------------------------------------------------------------------


def widen_conv_exp(tensors: Tensors) -> None:
    """Twice the channels between vision encoder and projector; the decoder's sizes stay."""
    tower = "model.vision_tower.vision_tower.model."
    for name, axis in {
        f"{tower}conv_exp.reparam_conv.weight": 0,
        f"{tower}conv_exp.reparam_conv.bias": 0,
        f"{tower}conv_exp.se.reduce.weight": 1,
        f"{tower}conv_exp.se.expand.weight": 0,
        f"{tower}conv_exp.se.expand.bias": 0,
        "model.mm_projector.0.weight": 1,
    }.items():
        tensors[name] = np.concatenate([tensors[name]] * 2, axis)


def test_a_checkpoint_with_another_decoder_is_refused(
    no_reference: None, package: Path, checkpoint: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"hidden_size is 96, and .* exported from 'demo'"):
        verify_package(package, checkpoint)


def test_a_checkpoint_with_another_vision_encoder_is_refused(
    package: Path, change_demo: Callable[..., Path], picture: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"the shape of image_hidden_states is \[1, 16, "):
        verify_package(package, change_demo(widen_conv_exp), images=[picture], steps=1)


def test_a_checkpoint_with_another_tokenizer_is_refused(no_reference: None, package: Path) -> None:
    demo = open_checkpoint("demo")
    tokenizer = json.loads(demo.tokenizer)
    vocab = tokenizer["model"]["vocab"]
    vocab["Ġthe"], vocab["Ġin"] = vocab["Ġin"], vocab["Ġthe"]
    other = replace(demo, tokenizer=json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match=r"makes other tokens of the prompt 'Describe the"):
        verify_package(package, other)


def test_a_checkpoint_with_a_missing_tensor_is_refused(package: Path) -> None:
    demo = open_checkpoint("demo")
    tensors = {n: t for n, t in demo.tensors.items() if n != "model.norm.weight"}
    with pytest.raises(CheckpointError, match=r"not those of its configuration .*norm\.weight"):
        verify_package(package, replace(demo, tensors=tensors))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 0}, InputError, "steps is 0; expected 1 or more"),
        ({"threads": 0}, InputError, "threads is 0; expected 1 or more"),
        ({"precisions": ["int3"]}, InputError, "has no int3 variant, only fp32"),
        ({"image_size": 0}, InputError, "was not exported for 0 pixels"),
        ({"images": ["nowhere.png"]}, InputError, "nowhere.png: no such picture"),
        ({"prompts": [" "]}, InputError, "the prompt is empty"),
        ({"prompts": ["Say <|im_end|>."]}, CheckpointError, "without special tokens"),
        ({"prompts": ["why " * 3000]}, PromptTooLongError, "shorten the prompt"),
    ],
)
def test_unusable_arguments_are_refused_before_the_reference_runs(
    no_reference: None,
    package: Path,
    options: dict[str, object],
    error: type[FastVLMError],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        verify_package(package, "demo", **options)


@pytest.mark.parametrize("others", [[], ["fp32"]])
def test_a_variant_that_the_cpu_cannot_run_is_refused_before_the_reference_runs(
    no_reference: None, tmp_path: Path, others: list[str]
) -> None:
    folder = tmp_path / "demo-onnx"
    export_package("demo", folder, precisions=[*others, "bf16"])
    expected = r"\(fp32\)" if others else r"\(the package has no others\)"
    with pytest.raises(InputError, match=rf"the CPU cannot run bf16, .* {expected}"):
        verify_package(folder, "demo", precisions=["bf16"])


def test_a_damaged_package_is_refused(no_reference: None, copied_package: Path) -> None:
    with (copied_package / "decoder.fp32.onnx.data").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(PackageError, match=r"decoder\.fp32\.onnx\.data: found 1,000 bytes"):
        verify_package(copied_package, "demo")


def test_a_variant_without_a_tolerance_is_refused(
    no_reference: None,
    copied_package: Path,
    edit_json: Callable[[Path, Callable[[dict], None]], None],
) -> None:
    def rename(manifest: dict) -> None:
        manifest["variants"]["int3"] = manifest["variants"].pop("fp32")

    edit_json(copied_package / "fastvlm.json", rename)
    with pytest.raises(InputError, match="no tolerance is known for int3, only for fp32, fp16"):
        verify_package(copied_package, "demo")
