"""Weights in 8 and 4 bits: their error is small, and MatMulNBits reads them."""

import itertools

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from relative_error import relative_error

from fastvlm_onnx.export.graphs.layers import Graph
from fastvlm_onnx.export.graphs.linear import MatMulNBits
from fastvlm_onnx.export.tensors import lazy_array
from fastvlm_onnx.export.tensors.lazy_array import LazyArray
from fastvlm_onnx.export.tensors.quantization import (
    dequantize_blocks,
    quantize_blocks,
    quantize_rows,
)
from fastvlm_onnx.export.tensors.quantized_weight import quantize_blocks_lazily

FloatArray = NDArray[np.float32]


def draws(distribution: str, rows: int = 256, columns: int = 896) -> FloatArray:
    rng = np.random.default_rng(7)
    shape = (rows, columns)
    drawn = {
        "normal": lambda: rng.standard_normal(shape),
        "laplace": lambda: rng.laplace(size=shape),
        "student": lambda: rng.standard_t(3, size=shape),
        "one-sided": lambda: rng.random(shape),
    }[distribution]()
    return (0.02 * drawn).astype(np.float32)


def rounded_to_nearest(weight: FloatArray, block_size: int) -> FloatArray:
    """int4 where the largest value of a block becomes -8, without a search for scales."""
    blocks = weight.reshape(-1, block_size)
    peaks = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)
    scales = peaks / np.float32(-8)
    return (np.clip(np.rint(blocks / scales), -8, 7) * scales).reshape(weight.shape)


@pytest.mark.parametrize("block_size", [32, 64, 128])
@pytest.mark.parametrize(
    ("distribution", "gain"),
    [("normal", 0.95), ("laplace", 0.93), ("student", 0.92), ("one-sided", 0.7)],
)
def test_searched_int4_is_closer_than_rounding_to_the_nearest(
    distribution: str, gain: float, block_size: int
) -> None:
    weight = draws(distribution)
    searched = dequantize_blocks(quantize_blocks(weight, block_size), weight.shape[1])
    nearest = rounded_to_nearest(weight, block_size)
    assert relative_error(searched, weight) < gain * relative_error(nearest, weight)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("in_size", [896, 864, 100])
def test_onnx_runtime_multiplies_with_the_dequantised_weights(bits: int, in_size: int) -> None:
    weight = draws("laplace", 48, in_size)
    lazy = LazyArray(weight.shape, lambda: weight, lambda start, stop: weight[start:stop])
    graph = Graph("product")
    x = graph.input("x", ir.DataType.FLOAT, [3, in_size])
    product = MatMulNBits(lazy, 64, bits)
    product._set_name("product")
    graph.output("y", product(graph.op, x), [3, 48])
    model = ir.to_proto(graph.finish())
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rows = np.random.default_rng(8).standard_normal((3, in_size)).astype(np.float32)
    expected = rows @ dequantize_blocks(quantize_blocks(weight, 64, bits), in_size).T
    # Activations are rounded to int8 on the way.
    assert relative_error(session.run(None, {"x": rows})[0], expected) < 0.02


@pytest.mark.parametrize("bits", [4, 8])
def test_zero_weights_stay_zero(bits: int) -> None:
    weight = draws("one-sided")
    weight[3] = 0
    weight[:, ::5] = 0
    found = dequantize_blocks(quantize_blocks(weight, 64, bits), weight.shape[1])
    assert not found[3].any()
    assert not found[:, ::5].any()
    assert not quantize_rows(weight)[0][3].any()


@pytest.mark.parametrize("value", [1e-45, 1e-38, 1e-30, 1e15])
def test_very_small_and_very_large_weights_stay_finite(value: float) -> None:
    weight = np.full((2, 128), value, np.float32)
    weight[1, ::2] *= -1
    for bits in (4, 8):
        found = dequantize_blocks(quantize_blocks(weight, 64, bits), 128)
        assert np.isfinite(found).all()
        if value > 1e-35:  # closer to zero, numbers have few digits left
            assert relative_error(found / value, weight / value) < 0.1


# --- quantised when written ----------------------------------------------------------------------


@pytest.fixture
def counted_weight() -> tuple[LazyArray, list[int]]:
    """A weight, and the rows of each reading of it."""
    weight, reads = draws("normal", 96, 128), []

    def read(start: int, stop: int) -> FloatArray:
        reads.append(stop - start)
        return weight[start:stop]

    return LazyArray(weight.shape, lambda: read(0, len(weight)), read), reads


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_quantised_weight_s_tensors_are_the_same_in_any_order(
    counted_weight: tuple[LazyArray, list[int]], order: tuple[int, ...]
) -> None:
    lazy, _ = counted_weight
    found = quantize_blocks_lazily(lazy, 64, 4)
    expected = quantize_blocks(lazy.read(), 64, 4)
    tensors = (found.values, found.scales, found.zero_points)
    arrays = (expected.packed, expected.scales, expected.zero_points)
    for i in order:
        np.testing.assert_array_equal(tensors[i].read(), arrays[i])


def test_values_then_scales_read_a_weight_once(
    counted_weight: tuple[LazyArray, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    lazy, reads = counted_weight
    monkeypatch.setattr(lazy_array, "CHUNK_BYTES", 10_000)
    weight = quantize_blocks_lazily(lazy, 64, 4)
    for tensor in (weight.values, weight.scales, weight.zero_points):
        list(tensor.chunks())
    assert sum(reads) == lazy.shape[0]
    assert len(reads) > 2
