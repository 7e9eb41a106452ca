"""`export --calibrate`: decoders that are quantised on the activations of texts and images."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import run
from small_disk import export_until_full

import fastvlm_onnx
from fastvlm_onnx import FastVLM, InputError
from fastvlm_onnx.export.calibration import held_array
from fastvlm_onnx.export.calibration.calibration_set import (
    BUILT_IN,
)
from fastvlm_onnx.export.calibration.layer_runner import LayerRunner
from fastvlm_onnx.export.calibration.sequences import encode_images
from fastvlm_onnx.export.graphs.decoder_precisions import DECODER_PRECISIONS
from fastvlm_onnx.export.pipeline import export_package
from fastvlm_onnx.export.sources.open_checkpoint import open_checkpoint
from fastvlm_onnx.export.tensors.block_formats import PRODUCTS, BlockFormat
from fastvlm_onnx.export.tensors.weights import Weights
from fastvlm_onnx.export.verification.metrics import kl_divergences
from fastvlm_onnx.package import Manifest, read_manifest
from fastvlm_onnx.progress import no_progress
from fastvlm_onnx.runtime.text.tokenizer import TextTokenizer

# Of the judge of quantisation; the calibration set shares no text with them.
PROMPTS = Path(__file__).resolve().parents[2] / "benchmarks/quality/prompts.json"

TEXT = "The ferry left at noon, and two of the passengers had no tickets. "


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def token_ids(text: str, package: Path) -> list[int]:
    return TextTokenizer(package / "tokenizer.json").encode(text)


@pytest.fixture(scope="session")
def calibrated(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Path:
    folder = tmp_path_factory.mktemp("calibrated") / "demo-onnx"
    export_package("demo", folder, precisions=["int4"], calibrate=texts)
    return folder


# --- the package ---------------------------------------------------------------------------------


def test_a_calibrated_package_is_whole(calibrated: Path) -> None:
    assert names_in(calibrated.parent) == {calibrated.name}
    manifest = read_manifest(calibrated)
    assert names_in(calibrated) == {*manifest.files, "fastvlm.json"}
    with fastvlm_onnx.load(calibrated) as model:
        assert model.precision == "int4"


def test_the_manifest_and_the_card_say_how_a_package_was_calibrated(
    calibrated: Path, tmp_path: Path, texts: Path
) -> None:
    record = read_manifest(calibrated).calibration
    assert record is not None
    assert (record.method, record.set, record.seed) == ("gptq", texts.name, 0)
    assert (record.texts, record.images) == (8, 0)
    assert record.tokens > 1000
    assert record.graphs == ["decoder.int4.onnx"]
    assert len(record.sha256) == 64
    card = (calibrated / "README.md").read_text()
    assert f"| calibration | gptq on {record.texts} texts and {record.images} images" in card
    assert "calibrated: gptq" in run("inspect", calibrated).stdout
    plain = export_package("demo", tmp_path / "onnx", precisions=["int4"])
    assert plain.calibration is None
    assert "calibration" not in (tmp_path / "onnx/README.md").read_text()


def test_a_calibration_changes_the_decoder_alone(calibrated: Path, tmp_path: Path) -> None:
    plain = export_package("demo", tmp_path / "onnx", precisions=["int4"])
    files = read_manifest(calibrated).files
    changed = {name for name, entry in files.items() if entry != plain.files[name]}
    assert changed == {
        "decoder.int4.onnx",
        "decoder.int4.onnx.data",
        "README.md",
        "golden.json",
    }


def test_a_calibrated_int4_decoder_has_scales_in_bfloat16_and_wider_mlps(calibrated: Path) -> None:
    graph = onnx.load(calibrated / "decoder.int4.onnx", load_external_data=False).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type == "MatMulNBits"]
    casts = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}
    for product in products[:-1]:  # lm_head is the last
        assert tensors[casts[product.input[2]]].data_type == onnx.TensorProto.BFLOAT16
    assert tensors[products[-1].input[2]].data_type == onnx.TensorProto.FLOAT
    attributes = [{a.name: a.i for a in product.attribute} for product in products[:4]]
    # 128 of the 384 channels have a second row in gate, up and a second column in down.
    assert [(a["K"], a["N"], a["bits"]) for a in attributes] == [
        (128, 256, 8),
        (128, 128, 8),
        (128, 2 * (384 + 128), 4),
        (384 + 128, 128, 4),
    ]


def test_the_built_in_set_brings_a_decoder_closer_to_float32_on_texts_it_has_not_seen(
    package: Path, tmp_path: Path, questions: dict[str, dict[str, str]], picture: Path
) -> None:
    export_package("demo", tmp_path / "nearest", precisions=["int4"])
    record = export_package(
        "demo", tmp_path / "found", precisions=["int4"], calibrate=True
    ).calibration
    assert record is not None
    assert (record.set, record.texts, record.images) == (BUILT_IN, 64, 6)
    # Many, because single texts of a model this small go either way: 76 of 80 went this way.
    turns = [p["turns"][0] for p in json.loads(PROMPTS.read_text()) if len(p["turns"][0]) > 40]
    texts = [token_ids(text, package)[:200] for text in turns[:60]]

    def logits(folder: Path) -> list[np.ndarray]:
        model = fastvlm_onnx.load(folder).language_model
        steps = (model.teacher_forced_logits(model.embed([ids[:8]]), ids[8:]) for ids in texts)
        return [np.array([row.copy() for row in rows]) for rows in steps]

    exact = logits(package)
    nearest, found = (
        np.mean(
            [
                kl_divergences(*pair).mean()
                for pair in zip(logits(tmp_path / name), exact, strict=True)
            ]
        )
        for name in ("nearest", "found")
    )
    assert found < 0.8 * nearest
    with fastvlm_onnx.load(tmp_path / "found") as model:
        for name, answers in questions.items():
            for prompt, answer in answers.items():
                assert model.generate(picture.with_name(name), prompt).text == answer


@pytest.mark.parametrize("calibrate", [False, True])
def test_every_product_may_have_another_format(
    calibrate: bool, package: Path, tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    formats = dict(zip(PRODUCTS, map(BlockFormat, (4, 8, 4, 8), (64, 128, 32, 64)), strict=True))
    precision = DECODER_PRECISIONS["int4"]
    precision = replace(precision, formats=formats, calibrated_formats=None)
    monkeypatch.setitem(DECODER_PRECISIONS, "int4", precision)
    folder = tmp_path / "onnx"
    export_package("demo", folder, precisions=["int4"], calibrate=calibrate and texts)
    nodes = onnx.load(folder / "decoder.int4.onnx", load_external_data=False).graph.node
    products = [node for node in nodes if node.op_type == "MatMulNBits"]
    found = [tuple(a.i for a in p.attribute if a.name in ("bits", "block_size")) for p in products]
    assert found == [(4, 64), (8, 128), (4, 32), (8, 64)] * 4 + [(8, 128)]  # lm_head
    prompt = [5, 17, 80, 200, 31, 9, 254, 100]
    logits = []
    for each in (folder, package):
        model = fastvlm_onnx.load(each).language_model
        logits.append(model.prefill(model.embed([prompt]), model.new_cache(9)).copy())
    assert np.linalg.norm(logits[0] - logits[1]) < 0.2 * np.linalg.norm(logits[1])


# --- the same bytes ------------------------------------------------------------------------------


def test_two_calibrated_exports_are_the_same_bytes(
    calibrated: Path, tmp_path: Path, texts: Path
) -> None:
    again = export_package("demo", tmp_path / "again", precisions=["int4"], calibrate=texts)
    assert again == read_manifest(calibrated)


def test_activations_on_disk_give_the_same_bytes(
    calibrated: Path, tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_array, "MEMORY_BYTES", 1000)
    found = export_package("demo", tmp_path / "onnx", precisions=["int4"], calibrate=texts)
    assert found == read_manifest(calibrated)


def test_a_disk_that_fills_up_during_a_calibration_leaves_nothing(tmp_path: Path) -> None:
    # A file that is mapped without room for it would end the process with SIGBUS.
    before = (
        "from fastvlm_onnx.export.calibration import held_array; held_array.MEMORY_BYTES = 1000"
    )
    options = "precisions=['int4'], calibrate=True"
    message, left = export_until_full(tmp_path, 160, "layer 1", options, before)
    assert "could not be written (the disk is full); nothing was left behind" in message
    assert left == "['filler']"


@pytest.fixture
def interrupted(tmp_path: Path, texts: Path) -> Path:
    """The destination of an export that was interrupted in the third of four layers."""
    destination = tmp_path / "onnx"

    def interrupt(stage: str, done: int, total: int) -> None:
        if "layer 3" in stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_package(
            "demo", destination, precisions=["int4"], calibrate=texts, progress=interrupt
        )
    assert names_in(tmp_path) == {".onnx.calibration"}
    return destination


def finish(destination: Path, texts: Path) -> tuple[Manifest, set[str], list[str]]:
    """Export again.

    Returns:
        The manifest, the layers' files that were kept from before, and the stages that ran.
    """
    folder = destination.with_name(f".{destination.name}.calibration")
    before = {path.name: path.stat().st_ino for path in folder.glob("int4.layer.*.npz")}
    kept, stages = set[str](), list[str]()

    def look(stage: str, done: int, total: int) -> None:
        if stage not in stages:
            stages.append(stage)
        if stage == "token embeddings":
            kept.update(n for n, inode in before.items() if (folder / n).stat().st_ino == inode)

    manifest = export_package(
        "demo", destination, precisions=["int4"], calibrate=texts, progress=look
    )
    assert names_in(destination.parent) == {destination.name}
    return manifest, kept, stages


def test_an_interrupted_calibration_goes_on_at_its_layer_to_the_same_bytes(
    interrupted: Path, calibrated: Path, texts: Path
) -> None:
    manifest, kept, stages = finish(interrupted, texts)
    assert kept == {"int4.layer.0.npz", "int4.layer.1.npz"}
    assert [stage for stage in stages if stage.startswith("calibration of")] == [
        "calibration of int4, layer 3 of 4",
        "calibration of int4, layer 4 of 4",
    ]
    assert manifest == read_manifest(calibrated)


@pytest.mark.parametrize("name", ["int4.layer.1.npz", "int4.streams.npz"])
def test_a_calibration_with_a_damaged_file_starts_again(
    name: str, interrupted: Path, calibrated: Path, texts: Path
) -> None:
    path = interrupted.with_name(".onnx.calibration") / name
    path.write_bytes(path.read_bytes()[:1000])
    manifest, kept, _ = finish(interrupted, texts)
    assert not kept
    assert manifest == read_manifest(calibrated)


def test_another_set_starts_again(interrupted: Path, tmp_path: Path, calibrated: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.txt").write_text(100 * "Another text, about something else. ")
    manifest = export_package("demo", interrupted, precisions=["int4"], calibrate=other)
    assert manifest.files != read_manifest(calibrated).files
    assert names_in(tmp_path) == {"onnx", "other"}


def test_progress_counts_the_layers(tmp_path: Path, texts: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    export_package(
        "demo",
        tmp_path / "onnx",
        precisions=["int4"],
        calibrate=texts,
        progress=lambda *call: calls.append(call),
    )
    counted = [call for call in calls if call[0].startswith("calibration")]
    assert [call[1] for call in counted] == sorted(call[1] for call in counted)
    assert {call[2] for call in counted} == {counted[0][2]}
    assert len({call[0] for call in counted}) == 4


# --- activations ---------------------------------------------------------------------------------


def layers_of(weights: Weights) -> Callable[[int], Weights]:
    return lambda layer: weights / f"model.layers.{layer}"


def test_the_layers_one_by_one_give_the_logits_of_the_decoder(
    package: Path, model: FastVLM
) -> None:
    checkpoint = open_checkpoint("demo")
    config, weights = checkpoint.config.decoder, Weights(checkpoint.tensors)
    ids = token_ids(3 * TEXT, package)
    embeds = model.language_model.embed([ids])
    hidden_states = embeds[0].copy()
    runner = LayerRunner(layers_of(weights), config, len(ids), threads=1)
    for layer in range(config.num_hidden_layers):
        runner.load({name: array.read() for name, array in runner.layer(layer).weights.items()})
        hidden_states = runner.run(hidden_states)
    last = hidden_states[-1].astype(np.float64)
    last /= np.sqrt((last**2).mean() + config.rms_norm_eps)
    last *= checkpoint.tensors["model.norm.weight"].read()
    logits = checkpoint.tensors["lm_head.weight"].read()[: config.vocab_size] @ last
    expected = model.language_model.prefill(embeds, model.language_model.new_cache(len(ids)))
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)


def test_a_product_s_input_is_what_the_layer_computes_before_it() -> None:
    checkpoint = open_checkpoint("demo")
    config, weights = checkpoint.config.decoder, Weights(checkpoint.tensors)
    runner = LayerRunner(layers_of(weights), config, 12, threads=1)
    loaded = {name: array.read() for name, array in runner.layer(1).weights.items()}
    runner.load(loaded)
    x = np.random.default_rng(1).standard_normal((12, config.hidden_size)).astype(np.float32)
    found = {product: runner.run(x, product) for product in PRODUCTS}
    norm = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + config.rms_norm_eps)
    np.testing.assert_allclose(
        found["qkv_proj"], norm * loaded["layer.input_layernorm.weight"], rtol=1e-4, atol=1e-5
    )
    gate, up = np.split(found["gate_up_proj"] @ loaded["layer.mlp.gate_up_proj.weight"], 2, axis=1)
    np.testing.assert_allclose(
        found["down_proj"], gate / (1 + np.exp(-gate)) * up, rtol=1e-3, atol=1e-4
    )
    attended = x + found["o_proj"] @ loaded["layer.self_attn.o_proj.weight"]
    output = attended + found["down_proj"] @ loaded["layer.mlp.down_proj.weight"]
    np.testing.assert_allclose(runner.run(x), output, rtol=1e-3, atol=1e-3)


def test_the_down_projection_s_input_comes_with_the_residual_stream_behind_it() -> None:
    checkpoint = open_checkpoint("demo")
    config, weights = checkpoint.config.decoder, Weights(checkpoint.tensors)
    runner = LayerRunner(layers_of(weights), config, 12, threads=1)
    graph = runner.layer(1)
    runner.load({name: array.read() for name, array in graph.weights.items()})
    x = np.random.default_rng(1).standard_normal((12, config.hidden_size)).astype(np.float32)
    inputs, residual = runner.run_to_last_product(x)
    np.testing.assert_allclose(inputs, runner.run(x, "down_proj"), rtol=1e-4, atol=1e-5)
    output = residual + inputs @ runner.weight(graph.products["down_proj"])
    np.testing.assert_allclose(output, runner.run(x), rtol=1e-4, atol=1e-5)


def test_a_runner_beside_another_keeps_its_weights() -> None:
    checkpoint = open_checkpoint("demo")
    config, weights = checkpoint.config.decoder, Weights(checkpoint.tensors)
    runner = LayerRunner(layers_of(weights), config, 12, threads=1)
    graph = runner.layer(0)
    runner.load({name: array.read() for name, array in graph.weights.items()})
    x = np.random.default_rng(1).standard_normal((12, config.hidden_size)).astype(np.float32)
    before, exact = runner.run(x), runner.beside()
    name = graph.products["down_proj"]
    runner.load({name: 2 * runner.weight(name)})
    np.testing.assert_array_equal(exact.run(x), before)
    assert not np.array_equal(runner.run(x), before)


def test_image_features_are_those_of_the_float32_package(model: FastVLM, picture: Path) -> None:
    (found,) = encode_images(open_checkpoint("demo"), [picture], 256, no_progress)
    expected = np.asarray(model.encode_image(picture))[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


# --- additions -----------------------------------------------------------------------------------


def test_an_addition_to_a_calibrated_package_takes_the_same_set(
    calibrated: Path, tmp_path: Path, texts: Path
) -> None:
    folder = tmp_path / "onnx"
    folder.mkdir()
    for path in calibrated.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="calibrated on the set texts; add --calibrate with"):
        export_package("demo", folder, precisions=["int8"], add=True)
    manifest = export_package("demo", folder, precisions=["int8"], add=True, calibrate=texts)
    assert list(manifest.variants) == ["int4", "int8"]
    weights = "decoder.int4.onnx.data"
    assert manifest.files[weights] == read_manifest(calibrated).files[weights]
    record = read_manifest(calibrated).calibration
    assert record is not None
    both = ["decoder.int4.onnx", "decoder.int8.onnx"]
    assert manifest.calibration == replace(record, graphs=both)


def test_an_addition_does_not_calibrate_old_weights(tmp_path: Path, texts: Path) -> None:
    folder = tmp_path / "onnx"
    export_package("demo", folder, precisions=["int4"])
    with pytest.raises(InputError, match="holds int4 without calibration"):
        export_package("demo", folder, precisions=["int8"], add=True, calibrate=texts)


def test_an_added_variant_may_be_calibrated(copied_package: Path, texts: Path) -> None:
    manifest = export_package(
        "demo", copied_package, precisions=["int4"], add=True, calibrate=texts
    )
    assert list(manifest.variants) == ["fp32", "int4"]
    assert manifest.calibration is not None
