"""`export --target openvino`: a vision encoder in QDQ form beside the variant's own."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from command_line import run
from onnx import numpy_helper

import fastvlm_onnx
from fastvlm_onnx import FastVLM, InputError
from fastvlm_onnx.export.architecture.tensor_names import VISION_PREFIX
from fastvlm_onnx.export.calibration.activation_ranges import RangeCalibration, make_picture
from fastvlm_onnx.export.graphs.qdq import (
    ActivationRange,
    equalized_range,
    fold_factors,
    foldable_products,
)
from fastvlm_onnx.export.graphs.vision_encoder_qdq import (
    build_vision_encoder_float,
    quantized_products,
)
from fastvlm_onnx.export.pipeline import export_package
from fastvlm_onnx.export.sources.open_checkpoint import open_checkpoint
from fastvlm_onnx.export.tensors.quantization import quantize_rows
from fastvlm_onnx.export.tensors.weights import Weights
from fastvlm_onnx.export.verification.metrics import relative_error
from fastvlm_onnx.names import PIXEL_VALUES
from fastvlm_onnx.package import read_manifest
from fastvlm_onnx.progress import no_progress
from fastvlm_onnx.runtime.vision.image import preprocess, read_picture
from fastvlm_onnx.samples import SAMPLE_PICTURES

QDQ_FILE = "vision_encoder.256.qdq.onnx"
PICTURES = sorted(path for path in SAMPLE_PICTURES.iterdir() if path.suffix != ".json")


@pytest.fixture(scope="module")
def qdq_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qdq") / "demo-onnx"
    export_package("demo", folder, precisions=["fast"], target="openvino")
    return folder


@pytest.fixture(scope="module")
def qdq_on_cpu(qdq_package: Path, tmp_path_factory: pytest.TempPathFactory) -> FastVLM:
    """A package whose variant has the graph in QDQ form on every provider."""
    folder = tmp_path_factory.mktemp("on-cpu") / "demo-onnx"
    shutil.copytree(qdq_package, folder)
    manifest = json.loads((folder / "fastvlm.json").read_text())
    fast = manifest["variants"]["fast"]
    fast["vision_encoder"] = fast["per_provider"]["openvino"]["vision_encoder"]
    (folder / "fastvlm.json").write_text(json.dumps(manifest))
    return fastvlm_onnx.load(folder, providers="cpu")


# --- the package ---------------------------------------------------------------------------------


def test_the_graph_is_openvinos_and_the_variant_keeps_its_own(qdq_package: Path) -> None:
    manifest = read_manifest(qdq_package)
    fast = manifest.variants["fast"]
    assert fast.per_provider["openvino"].vision_encoder == {"256": QDQ_FILE}
    assert fast.vision_encoder == {"256": "vision_encoder.256.int8.onnx"}
    on_openvino = fast.on_providers({"vision_encoder": "openvino", "decoder": "cpu"})
    assert on_openvino.vision_encoder == {"256": QDQ_FILE}
    assert on_openvino.decoder == fast.decoder
    assert {path.name for path in qdq_package.iterdir()} == {*manifest.files, "fastvlm.json"}


def test_the_record_of_the_graph_and_of_its_ranges_is_in_the_manifest(qdq_package: Path) -> None:
    manifest = read_manifest(qdq_package)
    graph = manifest.graphs[QDQ_FILE]
    assert graph.weights == ["vision_encoder.qdq.onnx.data"]
    assert set(graph.opsets) == {"ai.onnx"}
    assert graph.int8_products
    record = manifest.ranges
    assert record is not None
    assert (record.method, record.set, record.image_size) == ("min-max", "built-in", 256)
    assert record.graphs == [QDQ_FILE]
    assert record.images > len(PICTURES)


def test_two_exports_are_the_same_bytes(qdq_package: Path, tmp_path: Path) -> None:
    again = export_package("demo", tmp_path / "onnx", precisions=["fast"], target="openvino")
    assert again == read_manifest(qdq_package)


def test_weights_are_int8_with_a_scale_for_each_output_channel(qdq_package: Path) -> None:
    model = onnx.load(qdq_package / QDQ_FILE)
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    name = "network.2.0.convffn.fc2.weight"
    assert values[name].dtype == np.int8
    assert values[name].shape == (32, 128, 1, 1)
    assert values[f"{name}_scale"].shape == (32,)
    assert np.abs(values[name]).max(axis=(1, 2, 3)).tolist() == [127] * 32
    # A MatMul's weight is [in, out].
    qkv = "network.7.0.token_mixer.qkv.weight"
    assert values[qkv].shape == (128, 384)
    assert values[f"{qkv}_scale"].shape == (384,)
    assert np.abs(values[qkv]).max(axis=0).tolist() == [127] * 384
    axes = {
        node.input[0]: [a.i for a in node.attribute if a.name == "axis"]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
    }
    assert axes[name] == [0]
    assert axes[qkv] == []  # 1 is the default


def test_depthwise_convolutions_stay_float32(qdq_package: Path) -> None:
    model = onnx.load(qdq_package / QDQ_FILE, load_external_data=False)
    dtypes = {t.name: t.data_type for t in model.graph.initializer}
    for name in ("network.2.0.token_mixer.weight", "conv_exp.reparam_conv.weight"):
        assert dtypes[name] == onnx.TensorProto.FLOAT


def test_image_hidden_states_are_close_to_fp32(qdq_on_cpu: FastVLM, model: FastVLM) -> None:
    for path in PICTURES:
        pixel_values = preprocess(read_picture(path), model.image_size)
        found = qdq_on_cpu.image_encoder.run_vision_encoder(pixel_values)
        expected = model.image_encoder.run_vision_encoder(pixel_values)
        assert relative_error(found, expected) < 0.1, path.name


def test_the_sample_pictures_are_answered_as_with_fp32(
    qdq_on_cpu: FastVLM, questions: dict[str, dict[str, str]]
) -> None:
    for name, answers in questions.items():
        for prompt, answer in answers.items():
            assert qdq_on_cpu.generate(SAMPLE_PICTURES / name, prompt).text == answer


# --- ranges --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lowest", "highest", "zero_point"), [(0, 5.1, 0), (-5.1, 0, 255), (-1, 3, 64)]
)
def test_a_range_represents_its_ends_and_zero(
    lowest: float, highest: float, zero_point: int
) -> None:
    found = ActivationRange(lowest, highest)
    assert found.zero_point == zero_point
    represented = (np.array([0, 255]) - float(found.zero_point)) * found.scale
    np.testing.assert_allclose(represented, [lowest, highest], atol=found.scale)


def test_an_activation_of_zeros_has_a_range() -> None:
    assert (ActivationRange(0, 0).scale, ActivationRange(0, 0).zero_point) == (1, 0)
    equalized = equalized_range(np.zeros(3, np.float32), np.zeros(3, np.float32))
    assert (equalized.scale, equalized.factors.tolist()) == (1, [1, 1, 1])


def test_equalizing_brings_the_channels_magnitudes_together() -> None:
    lowest = np.array([-1, -4, 0, 0], np.float32)
    highest = np.array([0.5, 8, 2, 0], np.float32)
    found = equalized_range(lowest, highest)
    np.testing.assert_allclose(np.prod(found.factors), 1, rtol=1e-5)
    # The ratio of two channels becomes its root.
    np.testing.assert_allclose(found.factors[1] / found.factors[2], 2, rtol=1e-6)
    assert found.factors[3] == found.factors.min() > 0
    assert found.lowest < (lowest / found.factors).min()
    assert found.highest > (highest / found.factors).max()


def test_folded_factors_leave_the_float_graph_as_it_was(model: FastVLM) -> None:
    """Only the rounding differs between the graph with factors and without."""
    checkpoint = open_checkpoint("demo")
    size = model.image_size
    calibration = RangeCalibration(checkpoint, None, size)
    calibration.run(no_progress)
    weights = Weights(checkpoint.tensors) / VISION_PREFIX.rstrip(".")
    graph = build_vision_encoder_float(weights, checkpoint.config.vision, size)
    names = foldable_products(graph, quantized_products(graph))
    # The first linear layer of every block, and the products of queries, keys and values.
    assert {name.split(".")[-2] for name in names} == {"fc1", "qkv"}
    assert any(calibration.ranges[name].factors.max() > 1.2 for name in names)
    fold_factors(graph, names, calibration.ranges)
    session = onnxruntime.InferenceSession(ir.serde.serialize_model(graph).SerializeToString())
    pixel_values = preprocess(read_picture(PICTURES[0]), size)
    (found,) = session.run(None, {PIXEL_VALUES: pixel_values})
    expected = model.image_encoder.run_vision_encoder(pixel_values)
    assert relative_error(found, expected) < 1e-4


def write_pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    for i in range(count):
        shutil.copy(
            PICTURES[i % len(PICTURES)], folder / f"{i}{PICTURES[i % len(PICTURES)].suffix}"
        )
    return folder


def test_the_ranges_come_from_a_folders_images(
    qdq_package: Path, tmp_path: Path, texts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_pictures(tmp_path / "pictures", 9)
    shutil.copy(texts / "one.txt", folder)
    (folder / "broken.png").write_bytes(b"no picture")
    with caplog.at_level(logging.WARNING, "fastvlm_onnx"):
        manifest = export_package(
            "demo", tmp_path / "onnx", precisions=["int8"], target="openvino", calibrate=folder
        )
    assert "broken.png" in caplog.text
    assert manifest.ranges is not None
    assert (manifest.ranges.set, manifest.ranges.images) == ("pictures", 9)
    assert manifest.ranges.sha256 != read_manifest(qdq_package).ranges.sha256
    assert manifest.calibration is not None  # of the decoder, on the same folder
    assert (manifest.calibration.set, manifest.calibration.images) == ("pictures", 9)


def test_made_pictures_are_in_the_range_of_pixel_values() -> None:
    picture = make_picture(64, 3)
    assert picture.shape == (1, 3, 64, 64)
    assert picture.dtype == np.float32
    assert picture.min() >= 0
    assert picture.max() <= 1
    assert picture.std() > 0.1
    np.testing.assert_array_equal(picture, make_picture(64, 3))
    assert not np.array_equal(picture, make_picture(64, 4))


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 3])
def test_a_folder_with_too_few_images_is_refused(count: int, tmp_path: Path, texts: Path) -> None:
    folder = write_pictures(tmp_path / "pictures", count)
    shutil.copy(next(texts.glob("*.txt")), folder)
    with pytest.raises(InputError, match=f"{count} images.* expected at least 8"):
        export_package(
            "demo", tmp_path / "onnx", precisions=["int8"], target="openvino", calibrate=folder
        )
    assert not (tmp_path / "onnx").exists()


def test_a_variant_without_int8_vision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fp32 has none; add one of int8, web, int4, fast"):
        export_package("demo", tmp_path / "onnx", precisions=["fp32"], target="openvino")


def test_an_unknown_target_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="target is 'abacus', expected 'openvino' or None"):
        export_package("demo", tmp_path / "onnx", precisions=["fast"], target="abacus")


# --- adding to a package -------------------------------------------------------------------------


@pytest.fixture
def copied(qdq_package: Path, tmp_path: Path) -> Path:
    shutil.copytree(qdq_package, tmp_path / "copied")
    return tmp_path / "copied"


def test_the_graph_can_be_added_to_a_package(qdq_package: Path, tmp_path: Path) -> None:
    export_package("demo", tmp_path / "onnx", precisions=["fast"])
    done = run("export", "demo", "-o", tmp_path / "onnx", "--add", "--target", "openvino")
    assert done.returncode == 0, done.stderr
    assert read_manifest(tmp_path / "onnx") == read_manifest(qdq_package)


def test_an_addition_without_the_target_is_refused(copied: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in copied.iterdir()}
    done = run("export", "demo", "-o", copied, "--add", "--precision", "int8")
    assert done.returncode == 2
    assert "static scales" in done.stderr
    assert "--target openvino" in done.stderr
    assert {path.name: path.stat().st_mtime_ns for path in copied.iterdir()} == before


def test_the_target_without_a_precision_exports_fast(tmp_path: Path) -> None:
    done = run("export", "demo", "-o", tmp_path / "onnx", "--target", "openvino")
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path / "onnx")
    assert list(manifest.variants) == ["fast"]
    assert "openvino" in manifest.variants["fast"].per_provider


def test_weights_of_the_graph_are_rounded_as_rows_are(qdq_package: Path, model: FastVLM) -> None:
    exact = onnx.load(model.sessions["vision_encoder"].path)
    weights = {t.name: numpy_helper.to_array(t) for t in exact.graph.initializer}
    rounded = onnx.load(qdq_package / QDQ_FILE)
    values = {t.name: numpy_helper.to_array(t) for t in rounded.graph.initializer}
    name = "network.4.0.convffn.fc2.weight"
    integers, scales = quantize_rows(weights[name][:, :, 0, 0])
    np.testing.assert_array_equal(values[name][:, :, 0, 0], integers)
    np.testing.assert_array_equal(values[f"{name}_scale"], scales)
