"""int8 products give numpy's integers on every processor, in every graph.

A processor with AVX2 and without VNNI saturates where products read int8 weights (`runtime/
saturation.py`). Where this machine is no such processor, QEMU stands for it.
"""

import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnxscript import nn
from saturation_probe import PROBE, build_probe

from fastvlm_onnx.export.graphs.decoder_int8 import PerTokenInt8Linear, SpreadInt8Linear
from fastvlm_onnx.export.graphs.hadamard import Hadamard, transform_inputs
from fastvlm_onnx.export.graphs.layers import Graph, Op, register_parameters
from fastvlm_onnx.export.graphs.layers_int8 import (
    Int8Linear,
    QuantizedActivation,
    quantize_activation,
    scan,
)
from fastvlm_onnx.export.graphs.linear import BlockLinear
from fastvlm_onnx.export.pipeline import export_package
from fastvlm_onnx.export.tensors.lazy_array import LazyArray
from fastvlm_onnx.export.verification.metrics import relative_error
from fastvlm_onnx.variants import OPERATOR_SETS, VARIANTS

RUN_GRAPHS = Path(__file__).parent / "run_graphs.py"
# The input that each product reads its weight from.
INT8_PRODUCTS = {"MatMulInteger": 1, "MatMulIntegerToFloat": 1, "DynamicQuantizeMatMul": 1}
ROWS, INNER, OUTER = 16, 64, 48

# --- every variant's graphs ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, onnx.ModelProto]:
    """Every graph that the exporter can write, by file name, at a size that is cut into tiles."""
    found = {}
    for operators in OPERATOR_SETS:
        precisions = [s.name for s in VARIANTS.values() if operators in s.operator_sets]
        folder = tmp_path_factory.mktemp("every-variant") / "demo-onnx"
        export_package(
            "demo", folder, precisions=precisions, operators=operators, image_sizes=[1024]
        )
        for path in folder.glob("*.onnx"):
            found[path.name] = onnx.load(path, load_external_data=False)
        shutil.rmtree(folder)
    return found


def graphs_within(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and its subgraphs."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs_within(attribute.g)


def every_graph(models: dict[str, onnx.ModelProto]) -> Iterator[tuple[str, onnx.GraphProto]]:
    for name, model in models.items():
        for graph in graphs_within(model.graph):
            yield f"{name}: {graph.name}", graph


def test_int8_weights_belong_to_the_graph_that_multiplies_them(
    graphs: dict[str, onnx.ModelProto],
) -> None:
    """ONNX Runtime rewrites int8 weights as uint8 only where it finds them in the same graph."""
    outside, products = [], 0
    for name, graph in every_graph(graphs):
        own = {tensor.name for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type in INT8_PRODUCTS:
                products += 1
                if (weight := node.input[INT8_PRODUCTS[node.op_type]]) not in own:
                    outside.append(f"{name}: {weight}")
    assert not outside
    assert products > 50


def test_int8_tensors_are_read_by_the_products_alone(graphs: dict[str, onnx.ModelProto]) -> None:
    """No other operator with int8 weights can come in without a test of its sums below."""
    readers = {
        node.op_type
        for _, graph in every_graph(graphs)
        for node in graph.node
        if {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.INT8}
        & set(node.input)
    }
    assert readers == {"MatMulIntegerToFloat", "DynamicQuantizeMatMul"}


def test_scan_bodies_read_nothing_from_outside(graphs: dict[str, onnx.ModelProto]) -> None:
    bodies = 0
    for name, model in graphs.items():
        for body in list(graphs_within(model.graph))[1:]:
            bodies += 1
            known = {value.name for value in (*body.input, *body.initializer)}
            for node in body.node:
                assert {value for value in node.input if value} <= known, name
                known |= set(node.output)
    assert bodies > 5


def test_graphs_hold_no_value_info(graphs: dict[str, onnx.ModelProto]) -> None:
    assert [name for name, graph in every_graph(graphs) if graph.value_info] == []


def test_nodes_state_no_attribute_that_is_the_default(graphs: dict[str, onnx.ModelProto]) -> None:
    stated = set()
    for model in graphs.values():
        (opset,) = (entry.version for entry in model.opset_import if not entry.domain)
        for graph in graphs_within(model.graph):
            for node in graph.node:
                if node.domain:
                    continue
                known = onnx.defs.get_schema(node.op_type, opset).attributes
                stated |= {
                    f"{node.op_type}.{attribute.name}"
                    for attribute in node.attribute
                    if known[attribute.name].default_value.type
                    and onnx.helper.get_attribute_value(known[attribute.name].default_value)
                    == onnx.helper.get_attribute_value(attribute)
                }
    assert not stated


# --- every block with quantised weights, against numpy's integers --------------------------------

Block = Callable[[LazyArray], Callable[[Op, ir.Value], ir.Value]]


class InScan(nn.Module):
    """A product in a Scan body that runs over tiles of rows, as in the vision encoder."""

    def __init__(self, weight: LazyArray) -> None:
        super().__init__()
        self.linear = Int8Linear(weight)

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        activation = quantize_activation(op, x)
        register_parameters(op, self.linear)
        shape = [ROWS // 4, INNER]
        tiles = scan(
            op,
            lambda body, *slices: self.linear(body, QuantizedActivation(*slices)),
            [
                (op.Reshape(activation.values, [4, *shape]), ir.DataType.UINT8, shape),
                (op.Expand(activation.scale, [4]), ir.DataType.FLOAT, []),
                (op.Expand(activation.zero_point, [4]), ir.DataType.UINT8, []),
            ],
            (ir.DataType.FLOAT, [ROWS // 4, OUTER]),
        )
        return op.Reshape(tiles, [ROWS, OUTER])


class DynamicInScan(nn.Module):
    """A product in a Scan body that quantises each tile by itself."""

    def __init__(self, weight: LazyArray) -> None:
        super().__init__()
        self.linear = Int8Linear(weight)

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        register_parameters(op, self.linear)
        shape = [ROWS // 4, INNER]
        tiles = scan(
            op,
            self.linear,
            [(op.Reshape(x, [4, *shape]), ir.DataType.FLOAT, shape)],
            (ir.DataType.FLOAT, [ROWS // 4, OUTER]),
        )
        return op.Reshape(tiles, [ROWS, OUTER])


def quantized_first(weight: LazyArray) -> Callable[[Op, ir.Value], ir.Value]:
    linear = Int8Linear(weight)
    linear._set_name("linear")
    return lambda op, x: linear(op, quantize_activation(op, x))


def per_token(weight: LazyArray) -> Callable[[Op, ir.Value], ir.Value]:
    return lambda op, x: PerTokenInt8Linear([weight])(op, x)[0]


def spread(weight: LazyArray) -> Callable[[Op, ir.Value], ir.Value]:
    """A Hadamard transform of weights and input, which the layer's own transform turns back."""
    linear = SpreadInt8Linear([transform_inputs(weight, INNER)])
    hadamard = Hadamard(INNER, INNER)
    hadamard._set_name("turned")
    # The transform takes [B, N, in], the test's input is [N, in].
    return lambda op, x: op.Squeeze(linear(op, hadamard(op, op.Unsqueeze(x, [0])))[0], [0])


def in_blocks(bits: int, block_size: int) -> Block:
    def build(weight: LazyArray) -> Callable[[Op, ir.Value], ir.Value]:
        projection = BlockLinear([weight], block_size=block_size, bits=bits)
        return lambda op, x: projection(op, x)[0]

    return build


@dataclass(frozen=True)
class Case:
    """One block, and the largest integers that it represents exactly with scales of 1."""

    build: Block
    lowest_activation: int = 0
    highest_activation: int = 255
    highest_weight: int = 127
    lowest_weight: int = -127


SIGNED = {"lowest_activation": -127, "highest_activation": 127}
CASES = {
    "DynamicQuantizeMatMul": Case(Int8Linear),
    "MatMulIntegerToFloat": Case(quantized_first),
    "MatMulIntegerToFloat for each token": Case(per_token, **SIGNED),
    "MatMulIntegerToFloat behind a Hadamard transform": Case(spread, **SIGNED),
    "MatMulIntegerToFloat in a Scan": Case(InScan),
    "DynamicQuantizeMatMul in a Scan": Case(DynamicInScan),
    "MatMulNBits of 8 bits": Case(in_blocks(8, 32), **SIGNED),
    "MatMulNBits of 4 bits": Case(in_blocks(4, 32), **SIGNED, lowest_weight=-8, highest_weight=7),
}


def operands(case: Case) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Activations [ROWS, INNER] and weights [OUTER, INNER] over the full range, in every block."""
    rng = np.random.default_rng(5)
    low, high = case.lowest_activation, case.highest_activation
    activations = rng.integers(low, high + 1, (ROWS, INNER), np.int32)
    activations[:, ::16], activations[:, 1::16] = high, low
    activations[:4] = high  # the largest sums of all
    activations[:4, 1::16] = low
    weights = rng.integers(case.lowest_weight, case.highest_weight + 1, (OUTER, INNER), np.int32)
    weights[:8] = case.highest_weight
    weights[:, 2::16], weights[:, 3::16] = case.highest_weight, case.lowest_weight
    return activations, weights


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph and its input for every block; `run_graphs.py` runs them as the runtime does."""
    folder = tmp_path_factory.mktemp("blocks")
    for number, case in enumerate(CASES.values()):
        activations, weights = operands(case)
        graph = Graph("block")
        x = graph.input("x", ir.DataType.FLOAT, [ROWS, INNER])
        values = weights.astype(np.float32)
        block = case.build(
            LazyArray(values.shape, lambda values=values: values, lambda a, b, v=values: v[a:b])
        )
        if isinstance(block, nn.Module):
            block._set_name("block")
        graph.output("y", block(graph.op, x), [ROWS, OUTER])
        ir.save(graph.finish(), folder / f"{number}.int8.onnx")
        np.savez(folder / f"{number}.int8.inputs.npz", x=activations.astype(np.float32))
    return folder


def assert_exact(folder: Path) -> None:
    """Outputs in `folder` round to numpy's integers: all scales are 1, up to float32's rounding."""
    for number, (name, case) in enumerate(CASES.items()):
        activations, weights = operands(case)
        found = np.load(folder / f"{number}.int8.outputs.npz")["y"]
        np.testing.assert_array_equal(np.rint(found), activations @ weights.T, err_msg=name)


def run_graphs(folder: Path, *emulator: str) -> None:
    command = [*emulator, sys.executable, str(RUN_GRAPHS), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_quantised_block_gives_numpys_integers(blocks: Path) -> None:
    run_graphs(blocks)
    assert_exact(blocks)


def test_the_shipped_probe_is_the_one_that_its_script_builds() -> None:
    assert PROBE.read_bytes() == build_probe().SerializeToString()


# --- the same on an emulated processor -----------------------------------------------------------

# QEMU runs this very Python, so this machine has to be an x86-64 too.
QEMU = shutil.which("qemu-x86_64") if platform.machine() == "x86_64" else None
needs_qemu = pytest.mark.skipif(
    QEMU is None,
    reason="no x86-64 Linux with qemu-x86_64 (Debian: apt-get install qemu-user)",
)
HASWELL = (str(QEMU), "-cpu", "Haswell")  # AVX2, no VNNI


@needs_qemu
def test_every_quantised_block_gives_numpys_integers_on_avx2(blocks: Path) -> None:
    run_graphs(blocks, *HASWELL)
    assert_exact(blocks)


@needs_qemu
def test_int8_products_saturate_on_the_emulated_processor(
    blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the probe's verdict the same blocks are wrong there: the test above can fail."""
    shutil.copytree(blocks, tmp_path / "blocks")
    monkeypatch.setenv("FASTVLM_ONNX_INT8_SATURATES", "0")
    run_graphs(tmp_path / "blocks", *HASWELL)
    with pytest.raises(AssertionError, match="DynamicQuantizeMatMul"):
        assert_exact(tmp_path / "blocks")


@needs_qemu
def test_the_built_in_model_is_as_near_to_fp32_on_avx2(
    tmp_path: Path, demo_pixels: NDArray[np.float32]
) -> None:
    """On this picture int8 is 0.11 from fp32 where products saturate, 0.014 where they do not."""
    package = tmp_path / "demo-onnx"
    export_package("demo", package, precisions=["fp32", "int8"])
    graphs = {precision: f"vision_encoder.256.{precision}" for precision in ("fp32", "int8")}
    # fp32 runs on this machine's own processor, whose float32 is as good and far quicker.
    for precision, emulator in (("fp32", ()), ("int8", HASWELL)):
        inputs = package / f"{graphs[precision]}.inputs.npz"
        np.savez(inputs, pixel_values=demo_pixels)
        run_graphs(package, *emulator)
        inputs.unlink()
    exact, found = (
        np.load(package / f"{graph}.outputs.npz")["image_hidden_states"]
        for graph in graphs.values()
    )
    error = relative_error(found, exact)
    assert error is not None
    assert error < 0.03


@pytest.fixture
def demo_pixels(picture: Path) -> NDArray[np.float32]:
    from fastvlm_onnx.runtime.vision.image import preprocess, read_picture

    return preprocess(read_picture(picture.with_name("shapes.png")), 256)
