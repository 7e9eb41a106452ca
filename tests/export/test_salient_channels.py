"""The channels of a calibrated int4 MLP that have 8 bits."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from fastvlm_onnx.export.architecture.config import DecoderConfig
from fastvlm_onnx.export.calibration.channel_order import ChannelSalience
from fastvlm_onnx.export.calibration.decoder_forms import Arrays, BlockForm
from fastvlm_onnx.export.calibration.gptq import GPTQ, Rounder
from fastvlm_onnx.export.graphs.decoder_int4 import SalientMLP
from fastvlm_onnx.export.graphs.layers import Graph
from fastvlm_onnx.export.sources.open_checkpoint import open_checkpoint
from fastvlm_onnx.export.tensors.block_formats import (
    CALIBRATED_FORMATS,
    INT4_FORMATS,
    BlockFormat,
    BlockFormats,
    salient_channels,
)
from fastvlm_onnx.export.tensors.salient_channels import BlockIntegers
from fastvlm_onnx.export.tensors.weights import Weights
from tests.export.one_graph import lazy, run

FloatArray = NDArray[np.float32]

HIDDEN, CHANNELS, SALIENT = 128, 512, 128
PRODUCTS = ("gate_up_proj", "down_proj")
# Channels whose gate and up may be larger than the others', spread over all blocks.
LOUD = np.arange(0, CHANNELS, 4)


@pytest.fixture
def config() -> DecoderConfig:
    config = open_checkpoint("demo").config.decoder
    return replace(config, hidden_size=HIDDEN, intermediate_size=CHANNELS)


def silu_product(gate_up: FloatArray) -> FloatArray:
    gate, up = np.split(gate_up, 2, axis=-1)
    found: FloatArray = gate / (1 + np.exp(-gate)) * up
    return found


def quantized(
    form: BlockForm, weights: dict[str, FloatArray], x: FloatArray, damping: float = 0.05
) -> dict[str, dict[str, NDArray[np.uint8] | FloatArray]]:
    """Both products of an MLP by GPTQ, on the inputs x [tokens, hidden_size]."""
    inputs = (x, silu_product(x @ weights["gate_up_proj"].T))
    return {
        name: dict(form.quantize(name, weights[name], Rounder(rows.T @ rows, GPTQ(damping))))
        for name, rows in zip(PRODUCTS, inputs, strict=True)
    }


def mlp_weights(loud: NDArray[np.int64], channels: int = CHANNELS) -> dict[str, FloatArray]:
    rng = np.random.default_rng(3)
    gate_up = rng.standard_normal((2 * channels, HIDDEN), np.float32) / 12
    gate_up[loud] *= 4
    gate_up[channels + loud] *= 4
    return {
        "gate_up_proj": gate_up,
        "down_proj": rng.standard_normal((HIDDEN, channels), np.float32) / 23,
    }


def test_two_halves_of_4_bits_are_the_integer_of_8_bits() -> None:
    integers = np.arange(-127, 128, dtype=np.int8)[None]
    whole = BlockIntegers(integers, np.float32([[0.3]]), np.uint8([[127]]))
    high, low = whole.halves()
    for half in (high, low):
        stored = half.integers + half.zeros.astype(np.int64)
        assert (stored.min(), stored.max()) == (0, 15)
    found = sum(half.scales.astype(np.float64) * half.integers for half in (high, low))
    np.testing.assert_allclose(found, np.float32(0.3) * integers.astype(np.float64), rtol=1e-12)


def test_the_number_of_channels_with_8_bits_is_whole_blocks() -> None:
    true_sizes = {4864: 256, 8960: 384, 18944: 1024}
    assert {size: salient_channels(INT4_FORMATS, size) for size in true_sizes} == true_sizes
    # At least one block, and none where the MLP is a single block or is not in 4 bits.
    assert [salient_channels(INT4_FORMATS, size) for size in (384, 129, 128, 64)] == [
        128,
        128,
        0,
        0,
    ]
    for product in PRODUCTS:
        assert salient_channels({**INT4_FORMATS, product: BlockFormat(8, 128)}, 4864) == 0


@pytest.mark.parametrize("product", PRODUCTS)
def test_the_first_channels_are_finer(config: DecoderConfig, product: str) -> None:
    form = BlockForm(config, INT4_FORMATS)
    assert form.salient == SALIENT
    weights = mlp_weights(LOUD[:0])
    x = np.random.default_rng(4).standard_normal((600, HIDDEN), np.float32)
    # With so much damping, no column makes up for another.
    arrays: Arrays = quantized(form, weights, x, damping=1e4)[product]
    weight = weights[product]
    found = form.dequantize(product, arrays, slice(None))
    error = np.abs(found - weight)
    if product == "gate_up_proj":
        error = error.reshape(2, CHANNELS, HIDDEN).transpose(1, 0, 2).reshape(CHANNELS, -1)
    else:
        error = error.T
    finer, others = error[:SALIENT].mean(), error[SALIENT:].mean()
    assert finer < others / 8
    pieces = [form.dequantize(product, arrays, slice(i, i + 50)) for i in range(0, len(weight), 50)]
    np.testing.assert_array_equal(np.concatenate(pieces), found)


@pytest.mark.parametrize("channels", [CHANNELS, 300])  # 300: the last block is not full
@pytest.mark.parametrize("formats", [INT4_FORMATS, CALIBRATED_FORMATS])
def test_onnx_runtime_multiplies_with_these_weights(
    config: DecoderConfig, channels: int, formats: BlockFormats, tmp_path: Path
) -> None:
    config = replace(config, intermediate_size=channels)
    form = BlockForm(config, formats)
    weights = mlp_weights(LOUD[:0], channels)
    x = np.random.default_rng(4).standard_normal((2, 300, HIDDEN), np.float32)
    arrays = quantized(form, weights, x.reshape(-1, HIDDEN))
    gate, up = np.split(weights["gate_up_proj"], 2)
    tensors = {
        f"{name}_proj.weight": lazy(weight)
        for name, weight in (("gate", gate), ("up", up), ("down", weights["down_proj"]))
    }
    mlp = SalientMLP(
        Weights(tensors),
        config,
        formats=formats,
        salient=form.salient,
        quantized={name: form.tensors(name, arrays[name].__getitem__) for name in PRODUCTS},
    )
    mlp._set_name("mlp")
    graph = Graph("mlp")
    value = graph.input("x", ir.DataType.FLOAT, ["B", "N", HIDDEN])
    graph.output("y", mlp(graph.op, value), ["B", "N", HIDDEN])
    (found,) = run(graph, tmp_path, x)
    rounded = {name: form.dequantize(name, arrays[name], slice(None)) for name in PRODUCTS}
    expected = silu_product(x @ rounded["gate_up_proj"].T) @ rounded["down_proj"].T
    # ONNX Runtime rounds the inputs of both products to int8.
    assert np.linalg.norm(found - expected) < 0.03 * np.linalg.norm(expected)


def test_the_channels_whose_rounding_matters_most_come_first() -> None:
    weights = mlp_weights(LOUD)
    x = np.random.default_rng(4).standard_normal((400, HIDDEN), np.float32)
    salience = ChannelSalience(np.ascontiguousarray(weights["down_proj"].T))
    for part in np.array_split(x, 3):
        salience.add(part @ weights["gate_up_proj"].T)
    order = salience.order(SALIENT)
    assert order[:SALIENT].tolist() == LOUD.tolist()
    others = np.setdiff1d(np.arange(CHANNELS), LOUD)
    assert order[SALIENT:].tolist() == others.tolist()


def test_salience_of_silent_channels_is_an_order_too() -> None:
    salience = ChannelSalience(np.zeros((CHANNELS, HIDDEN), np.float32))
    salience.add(np.zeros((5, 2 * CHANNELS), np.float32))
    assert salience.order(SALIENT).tolist() == list(range(CHANNELS))
