"""GPTQ: the outputs on given inputs change less than with rounding to the nearest."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from fastvlm_onnx.export.calibration.gptq import GPTQ, Rounder
from fastvlm_onnx.export.calibration.gram_factor import (
    TILE,
    damped_factor,
    mirror,
    permute,
    solve,
)
from fastvlm_onnx.export.calibration.input_gram import STRIP_ROWS, InputGram
from fastvlm_onnx.export.graphs.layers import Graph
from fastvlm_onnx.export.graphs.linear import MatMulNBits
from fastvlm_onnx.export.tensors.block_formats import BlockFormat
from fastvlm_onnx.export.tensors.lazy_array import LazyArray
from fastvlm_onnx.export.tensors.quantization import (
    Blocks,
    dequantize_blocks,
    quantize_blocks,
)
from fastvlm_onnx.export.tensors.quantized_weight import stored_blocks

FloatArray = NDArray[np.float32]


def inputs(tokens: int, width: int, seed: int = 3) -> FloatArray:
    """Correlated channels of unlike sizes, as a decoder's activations have."""
    mixing = np.random.default_rng(5).standard_normal((width // 2, width))
    sizes = np.exp(np.random.default_rng(6).standard_normal(width))
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((tokens, width // 2)) @ mixing
    return ((hidden + rng.standard_normal((tokens, width))) * sizes).astype(np.float32)


def weights(rows: int, width: int) -> FloatArray:
    return (0.02 * np.random.default_rng(7).standard_normal((rows, width))).astype(np.float32)


def gram_of(x: FloatArray) -> FloatArray:
    gram = InputGram(x.shape[1])
    for part in np.array_split(x, 3):
        gram.add(part)
    return gram.upper


def output_error(found: Blocks, weight: FloatArray, x: FloatArray) -> float:
    change = dequantize_blocks(found, weight.shape[1]).astype(np.float64) - weight
    return float(np.linalg.norm(x @ change.T))


@pytest.mark.parametrize("has_activation_order", [False, True])
@pytest.mark.parametrize("block_size", [32, 64, 128])
@pytest.mark.parametrize("width", [384, 300])
def test_gptq_changes_the_outputs_on_other_inputs_less_than_rounding_to_the_nearest(
    width: int, block_size: int, has_activation_order: bool
) -> None:
    weight, others = weights(96, width), inputs(500, width, seed=4)
    settings = GPTQ(has_activation_order=has_activation_order)
    found = Rounder(gram_of(inputs(3000, width)), settings).quantize(
        weight, BlockFormat(4, block_size)
    )
    nearest = quantize_blocks(weight, block_size)
    assert output_error(found, weight, others) < 0.7 * output_error(nearest, weight, others)


def test_channels_without_input_and_fewer_tokens_than_channels_give_finite_weights() -> None:
    weight, x = weights(32, 256), inputs(40, 256)
    x[:, 17] = 0
    found = Rounder(gram_of(x), GPTQ(damping=0.0)).quantize(weight, BlockFormat(4, 128))
    assert np.isfinite(found.scales).all()
    assert output_error(found, weight, x) < output_error(quantize_blocks(weight, 128), weight, x)
    silent = Rounder(np.zeros((256, 256), np.float32), GPTQ()).quantize(weight, BlockFormat(4, 128))
    assert np.isfinite(dequantize_blocks(silent, 256)).all()


def test_rows_and_channels_of_zeros_stay_zero() -> None:
    weight = weights(8, 128)
    weight[3] = 0
    found = Rounder(gram_of(inputs(400, 128)), GPTQ()).quantize(weight, BlockFormat(4, 128))
    assert not dequantize_blocks(found, 128)[3].any()


@pytest.mark.parametrize("size", [5, TILE, 2 * TILE + 37, STRIP_ROWS + 8])
def test_the_factor_times_its_transpose_is_the_damped_gram(size: int) -> None:
    x = inputs(2 * size, size)
    gram = gram_of(x)
    np.testing.assert_allclose(np.triu(gram), np.triu(x.T @ x), rtol=1e-3, atol=1e-3 * gram.max())
    mirror(gram)
    np.testing.assert_array_equal(gram, gram.T)
    expected = gram + np.diag(0.01 * np.diagonal(gram))
    factor = damped_factor(gram, 0.01)
    np.testing.assert_array_equal(factor, np.triu(factor))
    np.testing.assert_allclose(factor @ factor.T, expected, atol=1e-5 * expected.max())


@pytest.mark.parametrize("size", [5, TILE, 2 * TILE + 37])
def test_solving_with_the_factor_is_multiplying_by_the_inverse(size: int) -> None:
    factor = damped_factor(gram_of(inputs(2 * size, size)), 0.1).astype(np.float64)
    rows = np.random.default_rng(9).standard_normal((7, size))
    found = (rows @ factor @ factor.T).astype(np.float32)
    solve(factor.astype(np.float32), found)
    np.testing.assert_allclose(found, rows, rtol=1e-2, atol=1e-2)


def test_a_corrected_weight_gives_the_wanted_outputs() -> None:
    x, wanted_weight = inputs(3000, 192), weights(32, 192)
    given = wanted_weight + 0.1 * weights(40, 192)[8:]
    drift = (x @ (wanted_weight - given).T).T @ x
    found = given.copy()
    Rounder(gram_of(x), GPTQ(damping=1e-3)).correct(found, drift)
    errors = [np.linalg.norm(x @ (each - wanted_weight).T) for each in (found, given)]
    assert errors[0] < 0.1 * errors[1]


@pytest.mark.parametrize(("width", "block_size"), [(256, 128), (300, 64)])
def test_int8_blocks_of_gptq_are_closer_than_rounding_to_the_nearest(
    width: int, block_size: int
) -> None:
    weight, others = weights(96, width), inputs(500, width, seed=4)
    weight[3] = 0
    rounder = Rounder(gram_of(inputs(3000, width)), GPTQ())
    found = rounder.quantize(weight, BlockFormat(8, block_size))
    nearest = quantize_blocks(weight, block_size, bits=8)
    assert found.zero_points is None
    assert found.packed.shape == nearest.packed.shape
    assert not dequantize_blocks(found, width)[3].any()
    assert output_error(found, weight, others) < 0.7 * output_error(nearest, weight, others)


def test_a_matrix_that_is_not_positive_definite_is_damped_more() -> None:
    gram = np.full((300, 300), 2.0, np.float32)
    gram[0, 0] = 1.0
    factor = damped_factor(gram, 0.0)
    product = factor @ factor.T
    np.testing.assert_allclose(
        product - np.diag(np.diagonal(product)), 2 - 2 * np.eye(300), atol=1e-3
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_permutation_in_place_is_the_permutation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((TILE + 50, TILE + 50)).astype(np.float32)
    order = rng.permutation(len(matrix))
    expected = matrix[np.ix_(order, order)]
    permute(matrix, order)
    np.testing.assert_array_equal(matrix, expected)


def test_onnx_runtime_multiplies_with_the_weights_that_gptq_chose() -> None:
    weight, form = weights(48, 192), BlockFormat(4, 64)
    found = Rounder(gram_of(inputs(500, 192)), GPTQ()).quantize(weight, form)
    stored = stored_blocks(weight.shape, form, lambda name: getattr(found, name))
    graph = Graph("product")
    x = graph.input("x", ir.DataType.FLOAT, [3, 192])
    product = MatMulNBits(LazyArray(weight.shape, lambda: weight), 64, 4, stored)
    product._set_name("product")
    graph.output("y", product(graph.op, x), [3, 48])
    model = ir.to_proto(graph.finish())
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rows = np.random.default_rng(8).standard_normal((3, 192)).astype(np.float32)
    expected = rows @ dequantize_blocks(found, 192).T
    (result,) = session.run(None, {"x": rows})
    # Activations are rounded to int8 on the way.
    assert np.linalg.norm(result - expected) < 0.02 * np.linalg.norm(expected)
