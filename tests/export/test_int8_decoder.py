"""The int8 decoder: its transforms change nothing in float32, and 8 bits lose less behind them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from fastvlm_onnx.export.graphs import decoder_int8, decoder_precisions
from fastvlm_onnx.export.graphs.decoder import build_decoder
from fastvlm_onnx.export.graphs.decoder_int8 import (
    NUM_REFINED,
    ChannelInt8Head,
    PerTokenInt8MLP,
    RefinedInt8Head,
    quantize_tokens,
)
from fastvlm_onnx.export.graphs.decoder_precisions import DECODER_PRECISIONS
from fastvlm_onnx.export.graphs.hadamard import (
    Hadamard,
    hadamard_block,
    hadamard_matrix,
    transform_inputs,
    transform_outputs,
)
from fastvlm_onnx.export.graphs.layers import Graph
from fastvlm_onnx.export.graphs.linear import MatMulNBits
from fastvlm_onnx.export.sources.open_checkpoint import open_checkpoint
from fastvlm_onnx.export.tensors.quantization import (
    INT8_BLOCK,
    dequantize_blocks,
    quantize_blocks,
)
from fastvlm_onnx.export.tensors.weights import Weights
from fastvlm_onnx.export.verification.metrics import relative_error
from fastvlm_onnx.names import ATTENTION_MASK, INPUTS_EMBEDS, past_names
from fastvlm_onnx.runtime.ort.provider_selection import ProviderChoice
from fastvlm_onnx.runtime.ort.providers import CPU
from fastvlm_onnx.runtime.ort.session import GraphSession
from tests.export.one_graph import lazy, run

# Sums in another order cost about 1e-6.
FP32_TOLERANCE = 1e-4


@pytest.mark.parametrize("size", [1, 2, 32, 128])
def test_a_hadamard_matrix_is_symmetric_and_its_own_inverse(size: int) -> None:
    matrix = hadamard_matrix(size)
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix, matrix.T)
    np.testing.assert_allclose(matrix @ matrix, np.eye(size), atol=1e-6)


@pytest.mark.parametrize(
    ("width", "largest", "block_size"),
    [(896, 128, 128), (4864, 64, 64), (8960, 64, 64), (18944, 64, 64), (96, 128, 32), (33, 64, 1)],
)
def test_a_hadamard_block_divides_the_width(width: int, largest: int, block_size: int) -> None:
    assert hadamard_block(width, largest) == block_size


def test_a_hadamard_graph_and_transformed_weights_cancel(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 96), np.float32)
    weight = rng.standard_normal((64, 96), np.float32)
    graph = Graph("transform")
    value = graph.input("x", ir.DataType.FLOAT, ["B", "N", 96])
    transform = Hadamard(96, 32)
    transform._set_name("transform")
    graph.output("y", transform(graph.op, value), ["B", "N", 96])
    (transformed,) = run(graph, tmp_path, x)
    inner = transform_inputs(lazy(weight), 32)
    np.testing.assert_array_equal(inner.read()[8:16], inner.read_rows(8, 16))  # type: ignore[misc]
    np.testing.assert_allclose(transformed @ inner.read().T, x @ weight.T, atol=1e-4)
    outer = transform_outputs(lazy(weight), 32).read()
    matrix = np.kron(np.eye(2, dtype=np.float32), hadamard_matrix(32))
    np.testing.assert_allclose(x @ outer.T, x @ weight.T @ matrix, atol=1e-4)


# --- the residual stream -------------------------------------------------------------------------


def run_decoder(checkpoint: Path, folder: Path) -> dict[str, np.ndarray]:
    """Logits, keys and values of a prompt, by the fp32 graph as the exporter now declares it."""
    opened = open_checkpoint(checkpoint)
    config = opened.config.decoder
    path = folder / "decoder.onnx"
    ir.save(build_decoder(Weights(opened.tensors), config), path)
    x = np.random.default_rng(1).standard_normal((1, 9, config.hidden_size), np.float32)
    feeds = {INPUTS_EMBEDS: x, ATTENTION_MASK: np.ones((1, 9), np.int64)}
    past = np.zeros((1, config.num_key_value_heads, 0, config.head_dim), np.float32)
    for layer in range(config.num_hidden_layers):
        feeds |= dict.fromkeys(past_names(layer), past)
    session = GraphSession(path, ProviderChoice(CPU))
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


@pytest.mark.parametrize("source", ["random", "demo"])
def test_a_transformed_residual_stream_changes_neither_logits_nor_cache(
    source: str,
    checkpoint: Path,
    demo_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = checkpoint if source == "random" else demo_checkpoint
    expected = run_decoder(folder, tmp_path)
    form = replace(DECODER_PRECISIONS["fp32"], transforms_stream=True)
    monkeypatch.setitem(decoder_precisions.DECODER_PRECISIONS, "fp32", form)
    found = run_decoder(folder, tmp_path)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        error = relative_error(found[name], array)
        assert error is not None
        assert error < FP32_TOLERANCE, name


# --- activations in 8 bits -----------------------------------------------------------------------


def test_each_token_is_quantised_by_its_largest_magnitude(tmp_path: Path) -> None:
    x = np.random.default_rng(2).standard_normal((2, 3, 48), np.float32)
    x[0, 1] *= 1e6
    x[1, 2] = 0
    graph = Graph("quantize")
    value = graph.input("x", ir.DataType.FLOAT, ["B", "N", 48])
    activation, scale = quantize_tokens(graph.op, value, 48)
    graph.output("integers", activation.values, ["B", "N", 48], ir.DataType.UINT8)
    graph.output("scale", scale, ["B", "N", 1])
    integers, scales = run(graph, tmp_path, x)
    np.testing.assert_allclose(scales[..., 0], np.abs(x).max(-1) / 127, rtol=1e-6, atol=1e-30)
    signed = integers.astype(np.float64) - 128
    # Half a step, and the rounding of a quotient in float32.
    assert np.abs(signed - x / scales).max() < 0.5 + 1e-4
    assert np.abs(signed).max(-1).tolist() == [[127, 127, 127], [127, 127, 0]]


def mlp_error(folder: Path, *, block_size: int, monkeypatch: pytest.MonkeyPatch) -> float:
    """The int8 MLP's relative error where one channel of each token is far above the others."""
    config = replace(open_checkpoint("demo").config.decoder, hidden_size=128, intermediate_size=512)
    rng = np.random.default_rng(4)
    x = rng.standard_normal((1, 64, 128), np.float32)
    gate, up = (rng.standard_normal((512, 128), np.float32) / 12 for _ in range(2))
    down = rng.standard_normal((128, 512), np.float32) / 23
    # Each token excites the channel that is made of it, as a trained model's tokens do.
    gate[:64] = up[:64] = x[0] / 12
    monkeypatch.setattr(decoder_int8, "INPUT_BLOCK", block_size)
    tensors = {
        f"{name}_proj.weight": lazy(weight)
        for name, weight in (("gate", gate), ("up", up), ("down", down))
    }
    mlp = PerTokenInt8MLP(Weights(tensors), config)
    mlp._set_name("mlp")
    graph = Graph("mlp")
    value = graph.input("x", ir.DataType.FLOAT, ["B", "N", 128])
    graph.output("y", mlp(graph.op, value), ["B", "N", 128])
    (found,) = run(graph, folder, x)
    gated = x @ gate.T
    expected = (gated / (1 + np.exp(-gated)) * (x @ up.T)) @ down.T
    error = relative_error(found, expected)
    assert error is not None
    return error


def test_a_hadamard_transform_makes_the_down_projection_finer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = mlp_error(tmp_path, block_size=1, monkeypatch=monkeypatch)
    spread = mlp_error(tmp_path, block_size=64, monkeypatch=monkeypatch)
    assert spread < plain / 2


# --- lm_head -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("vocab_size", "hidden_size"), [(300, 96), (300, 256), (5, 96)])
def test_the_likeliest_tokens_have_the_logits_of_a_float32_input(
    tmp_path: Path, vocab_size: int, hidden_size: int
) -> None:
    rng = np.random.default_rng(6)
    weight = rng.standard_normal((vocab_size, hidden_size), np.float32)
    x = rng.standard_normal((2, 1, hidden_size), np.float32)
    x[..., 7] = 100  # one channel far above the others, as behind a trained model's last norm
    graph = Graph("head")
    value = graph.input("x", ir.DataType.FLOAT, ["B", 1, hidden_size])
    for name, kind in (("plain", MatMulNBits), ("refined", RefinedInt8Head)):
        head = kind(lazy(weight), INT8_BLOCK, 8)
        head._set_name(name)
        graph.output(f"{name}_logits", head(graph.op, value), ["B", 1, vocab_size])
    plain, refined = run(graph, tmp_path, x)
    blocks = quantize_blocks(weight, INT8_BLOCK, 8)
    exact = x @ dequantize_blocks(blocks, hidden_size).T
    for row in range(2):
        likeliest = np.argsort(-plain[row, 0])[:NUM_REFINED]
        others = np.argsort(-plain[row, 0])[NUM_REFINED:]
        np.testing.assert_allclose(
            refined[row, 0, likeliest], exact[row, 0, likeliest], atol=1e-3, rtol=1e-5
        )
        np.testing.assert_array_equal(refined[row, 0, others], plain[row, 0, others])
        assert np.abs(plain - exact)[row, 0, likeliest].max() > 0.01


def test_a_head_with_a_scale_for_each_channel_is_as_near_to_float32(tmp_path: Path) -> None:
    """One channel of its input is far above the others, of which MatMulNBits coarsens a block."""
    rng = np.random.default_rng(7)
    weight = rng.standard_normal((300, 256), np.float32)
    x = rng.standard_normal((2, 1, 256), np.float32)
    x[..., 7] = 100
    graph = Graph("head")
    value = graph.input("x", ir.DataType.FLOAT, ["B", 1, 256])
    for kind in (RefinedInt8Head, ChannelInt8Head):
        head = kind(lazy(weight), INT8_BLOCK, 8)
        head._set_name(kind.__name__)
        graph.output(f"{kind.__name__}.logits", head(graph.op, value), ["B", 1, 300])
    in_blocks, by_channel = run(graph, tmp_path, x)
    exact = x @ weight.T
    assert np.abs(by_channel - exact).max() < 1.5 * np.abs(in_blocks - exact).max()
    likeliest = np.argsort(-exact)[..., : NUM_REFINED // 4]
    refined = [np.take_along_axis(logits, likeliest, -1) for logits in (in_blocks, by_channel)]
    np.testing.assert_allclose(*refined, atol=1e-3, rtol=1e-5)
