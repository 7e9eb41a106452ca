"""`export --calibrate` of int8 decoders: integers for transformed inputs, and the same graph."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

import fastvlm_onnx
from fastvlm_onnx.export.calibration.decoder_forms import ChannelForm
from fastvlm_onnx.export.calibration.gptq import GPTQ, Rounder
from fastvlm_onnx.export.calibration.input_gram import InputGram
from fastvlm_onnx.export.calibration.layer_runner import LayerRunner
from fastvlm_onnx.export.graphs.decoder_int8 import PerTokenInt8Linear, SpreadInt8Linear
from fastvlm_onnx.export.graphs.layers import Graph
from fastvlm_onnx.export.pipeline import export_package
from fastvlm_onnx.export.sources.open_checkpoint import open_checkpoint
from fastvlm_onnx.export.tensors.block_formats import PRODUCTS
from fastvlm_onnx.export.tensors.lazy_array import FloatArray, LazyArray
from fastvlm_onnx.export.tensors.quantization import quantize_rows
from fastvlm_onnx.export.tensors.quantized_weight import stored_channels
from fastvlm_onnx.export.tensors.weights import Weights
from fastvlm_onnx.export.variants import build_graphs, calibrated_graphs
from fastvlm_onnx.package import read_manifest
from fastvlm_onnx.runtime.ort.provider_selection import ProviderChoice
from fastvlm_onnx.runtime.ort.providers import CPU
from fastvlm_onnx.runtime.ort.session import GraphSession
from fastvlm_onnx.runtime.text.tokenizer import TextTokenizer

DECODER = "decoder.int8.onnx"
# A text of the set.
TEXT = "The ferry left at noon, and two of the passengers had no tickets. "
# The weights of the int8 decoder's graph, by the product of the layer that runs in float32.
GRAPH_WEIGHTS = {
    "qkv_proj": ["self_attn.qkv_proj.products.0"],
    "o_proj": ["self_attn.o_proj.products.0"],
    "gate_up_proj": ["mlp.gate_proj", "mlp.up_proj"],
    "down_proj": ["mlp.down_proj"],
}


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Path:
    folder = tmp_path_factory.mktemp("calibrated") / "demo-onnx"
    export_package("demo", folder, precisions=["int8"], calibrate=texts)
    return folder


@pytest.fixture(scope="module")
def nearest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nearest") / "demo-onnx"
    export_package("demo", folder, precisions=["int8"])
    return folder


def weights_of(package: Path) -> dict[str, NDArray[np.float32]]:
    """The int8 decoder's initializers by name."""
    graph = onnx.load(package / DECODER).graph
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def dequantized(weights: dict[str, NDArray[np.float32]], layer: int, product: str) -> FloatArray:
    """A product's weight as the graph multiplies, float32 [in, out]."""
    names = [f"layers.{layer}.{name}" for name in GRAPH_WEIGHTS[product]]
    parts = [
        weights[f"{name}.weight"].astype(np.float32) * weights[f"{name}.scale"] for name in names
    ]
    return np.concatenate(parts, axis=1)


# --- the package ---------------------------------------------------------------------------------


def test_a_calibration_changes_int8_weights_and_no_graph(calibrated: Path, nearest: Path) -> None:
    graphs = [
        onnx.load(folder / DECODER, load_external_data=False).graph
        for folder in (calibrated, nearest)
    ]
    assert graphs[0].node == graphs[1].node
    shapes = [{t.name: (t.dims, t.data_type) for t in graph.initializer} for graph in graphs]
    assert shapes[0] == shapes[1]
    found, plain = weights_of(calibrated), weights_of(nearest)
    changed = {name for name in found if not np.array_equal(found[name], plain[name])}
    products = {
        f"layers.{i}.{n}" for i in range(4) for names in GRAPH_WEIGHTS.values() for n in names
    }
    assert changed == {f"{name}.{part}" for name in products for part in ("weight", "scale")}
    for name in products:
        # -128 would exceed the sums that products on AVX2 were checked for.
        assert np.abs(found[f"{name}.weight"].astype(np.int32)).max() <= 127
        assert (found[f"{name}.scale"] > 0).all()


def test_the_record_names_every_calibrated_graph(calibrated: Path) -> None:
    record = read_manifest(calibrated).calibration
    assert record is not None
    assert record.graphs == [DECODER]
    graphs = build_graphs(open_checkpoint("demo"), ["fp32", "fast"], [256], "microsoft")
    assert calibrated_graphs(graphs) == [
        "decoder.int4.onnx",
        "prefill.int8.onnx",
        "decoder_layers.int4.onnx",
    ]


@pytest.mark.parametrize("layer", [0, 2])
def test_a_calibration_brings_every_product_closer_to_float32_on_its_texts(
    layer: int, calibrated: Path, nearest: Path
) -> None:
    checkpoint = open_checkpoint("demo")
    config, weights = checkpoint.config.decoder, Weights(checkpoint.tensors)
    form = ChannelForm(config)
    runner = LayerRunner(
        lambda i: form.layer(weights / f"model.layers.{i}"), config, 200, threads=1
    )
    ids = TextTokenizer(calibrated / "tokenizer.json").encode(10 * TEXT)[:200]
    with fastvlm_onnx.load(calibrated, precision="int8") as model:
        hidden_states = form.stream(model.language_model.embed([ids])[0])
    for i in range(layer + 1):
        graph = runner.layer(i)
        runner.load({name: array.read() for name, array in graph.weights.items()})
        if i < layer:
            hidden_states = runner.run(hidden_states)
    stored = [weights_of(package) for package in (calibrated, nearest)]
    for product in PRODUCTS:
        x = form.transform(product, runner.run(hidden_states, product))
        exact = x @ form.transform(product, graph.weights[graph.products[product]].read().T).T
        errors = [np.linalg.norm(x @ dequantized(each, layer, product) - exact) for each in stored]
        # A weight of another basis would have an error of the size of the outputs.
        assert errors[1] < 0.02 * np.linalg.norm(exact)
        assert errors[0] < 0.9 * errors[1], product


def test_an_interrupted_calibration_of_int8_goes_on_to_the_same_bytes(
    calibrated: Path, texts: Path, tmp_path: Path
) -> None:
    destination = tmp_path / "onnx"

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "calibration of int8, layer 3 of 4":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_package(
            "demo", destination, precisions=["int8"], calibrate=texts, progress=interrupt
        )
    kept = {path.name for path in (tmp_path / ".onnx.calibration").glob("*.npz")}
    assert kept == {"int8.layer.0.npz", "int8.layer.1.npz", "int8.streams.npz"}
    found = export_package("demo", destination, precisions=["int8"], calibrate=texts)
    assert found == read_manifest(calibrated)
    assert not (tmp_path / ".onnx.calibration").exists()


# --- the integers --------------------------------------------------------------------------------


def channel_inputs(tokens: int, width: int, seed: int) -> FloatArray:
    """Correlated channels of unlike sizes, as a decoder's activations have."""
    mixing = np.random.default_rng(5).standard_normal((width // 2, width))
    sizes = np.exp(np.random.default_rng(6).standard_normal(width))
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((tokens, width // 2)) @ mixing
    return ((hidden + rng.standard_normal((tokens, width))) * sizes).astype(np.float32)


def rounder_of(x: FloatArray) -> Rounder:
    gram = InputGram(x.shape[1])
    gram.add(x)
    return Rounder(gram.upper, GPTQ())


@pytest.mark.parametrize("width", [384, 300])
def test_gptq_with_a_scale_for_each_channel_beats_rounding_to_the_nearest(width: int) -> None:
    rng = np.random.default_rng(7)
    weight = (0.02 * rng.standard_normal((96, width))).astype(np.float32)
    weight[3] = 0
    others = channel_inputs(500, width, seed=4)
    values, scales = rounder_of(channel_inputs(3000, width, seed=3)).quantize_channels(weight)
    assert values.dtype == np.int8
    assert values.min() >= -127
    assert not values[3].any()
    nearest_values, nearest_scales = quantize_rows(weight)
    errors = [
        np.linalg.norm(others @ (v * s[:, None] - weight).T)
        for v, s in ((values, scales), (nearest_values, nearest_scales))
    ]
    assert errors[0] < 0.7 * errors[1]


@pytest.mark.parametrize("layer", [PerTokenInt8Linear, SpreadInt8Linear])
def test_onnx_runtime_multiplies_with_the_channels_that_gptq_chose(
    layer: type[PerTokenInt8Linear], tmp_path: Path
) -> None:
    weight = (0.02 * np.random.default_rng(7).standard_normal((48, 192))).astype(np.float32)
    rows = channel_inputs(3, 192, seed=8)
    values, scales = rounder_of(channel_inputs(500, 192, seed=3)).quantize_channels(weight)
    arrays = {"values": values, "scales": scales}
    stored = stored_channels(weight.shape, arrays.__getitem__)
    lazy = [
        LazyArray(part.shape, lambda part=part: part)  # type: ignore[misc]
        for part in np.split(weight, [16])
    ]
    graph = Graph("product")
    x = graph.input("x", ir.DataType.FLOAT, ["B", 3, 192])
    product = layer(lazy, quantized=stored)
    product._set_name("product")
    for i, output in enumerate(product(graph.op, x)):
        graph.output(f"y{i}", output, ["B", 3, lazy[i].shape[0]])
    path = tmp_path / "graph.onnx"
    ir.save(graph.finish(), path)
    session = GraphSession(path, ProviderChoice(CPU), has_int8_products=True)
    found = np.concatenate(session.run(None, {"x": rows[None]}), axis=-1)[0]
    if layer is SpreadInt8Linear:
        rows = ChannelForm(open_checkpoint("demo").config.decoder).transform("o_proj", rows)
    peaks = np.abs(rows).max(axis=1, keepdims=True) / 127
    expected = np.rint(rows / peaks) * peaks @ (values * scales[:, None]).T
    # A value between two integers may be rounded to either.
    assert np.linalg.norm(found - expected) < 0.005 * np.linalg.norm(expected)
