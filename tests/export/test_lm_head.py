"""lm_head's graphs: the screen gives the logits of lm_head in int8 for the tokens that it finds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from fastvlm_onnx.export.graphs.decoder import build_decoder
from fastvlm_onnx.export.graphs.lm_head import build_lm_head, build_lm_head_screen
from fastvlm_onnx.export.pipeline import export_package
from fastvlm_onnx.export.sources.open_checkpoint import open_checkpoint
from fastvlm_onnx.export.tensors.lazy_array import FloatArray, LazyArray
from fastvlm_onnx.export.tensors.quantization import INT4_BLOCK, dequantize_blocks, quantize_blocks
from fastvlm_onnx.export.tensors.weights import Weights
from fastvlm_onnx.names import (
    HIDDEN_STATES,
    LOGITS,
    NUM_CANDIDATES,
    SCREENED_LOGITS,
    TOKEN_IDS,
    TOKEN_LOGITS,
)
from fastvlm_onnx.package import read_manifest
from fastvlm_onnx.runtime.ort.provider_selection import ProviderChoice
from fastvlm_onnx.runtime.ort.providers import CPU
from fastvlm_onnx.runtime.ort.session import GraphSession

CONFIG = open_checkpoint("demo").config.decoder
# Sums of int8 products in another order.
REORDERED = {"rtol": 1e-5, "atol": 1e-4}


def lazy(values: FloatArray) -> LazyArray:
    return LazyArray(values.shape, lambda: values, lambda start, stop: values[start:stop])


def run(model: ir.Model, folder: Path, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    path = folder / "graph.onnx"
    ir.save(model, path)
    session = GraphSession(path, ProviderChoice(CPU))
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def rounded(x: FloatArray, block_size: int) -> FloatArray:
    """x [B, 1, in] as the product rounds it: to int8, with a scale for each block of a row."""
    result = x.copy()
    for start in range(0, x.shape[-1], block_size):
        block = x[..., start : start + block_size]
        peak = np.abs(block).max(axis=-1, keepdims=True)
        result[..., start : start + block_size] = np.rint(block * (127 / peak)) * (peak / 127)
    return result


@pytest.mark.parametrize("hidden_size", [96, 128, 320])
def test_candidates_of_the_screen_have_the_logits_of_lm_head_in_int8(
    tmp_path: Path, hidden_size: int
) -> None:
    rng = np.random.default_rng(7)
    weight = rng.standard_normal((300, hidden_size), np.float32)
    config = replace(CONFIG, hidden_size=hidden_size, vocab_size=300, is_tied=False)
    weights = Weights({"lm_head.weight": lazy(weight)})
    x = rng.standard_normal((2, 1, hidden_size), np.float32)
    x[0, 0, 3] = 50  # a channel that makes its block coarse
    full = run(build_lm_head(weights, config), tmp_path, **{HIDDEN_STATES: x})[LOGITS]
    count = np.array([20])
    found = run(
        build_lm_head_screen(weights, config),
        tmp_path,
        **{HIDDEN_STATES: x, NUM_CANDIDATES: count},
    )
    blocks = quantize_blocks(weight, INT4_BLOCK, 4)
    rough = rounded(x, INT4_BLOCK) @ dequantize_blocks(blocks, hidden_size).T
    for row in range(2):
        tokens = found[TOKEN_IDS][row, 0]
        assert len(set(tokens)) == 20
        np.testing.assert_allclose(found[TOKEN_LOGITS][row, 0], full[row, 0, tokens], **REORDERED)
        assert set(tokens) == set(np.argsort(-rough[row, 0])[:20])
        screened = found[SCREENED_LOGITS][row, 0]
        np.testing.assert_allclose(screened, rough[row, 0, tokens], **REORDERED)


def test_hidden_states_and_lm_head_give_the_logits_of_the_whole_decoder(
    variants_package: Path,
) -> None:
    manifest = read_manifest(variants_package)
    variant = manifest.variants["fast"]
    assert variant.split_decoder is not None
    rng = np.random.default_rng(8)
    feeds = {
        "inputs_embeds": rng.standard_normal((1, 5, CONFIG.hidden_size), np.float32),
        "attention_mask": np.ones((1, 5), np.int64),
    }
    shape = (1, CONFIG.num_key_value_heads, 0, CONFIG.head_dim)
    for i in range(CONFIG.num_hidden_layers):
        for part in ("key", "value"):
            feeds[f"past_key_values.{i}.{part}"] = np.zeros(shape, np.float32)

    def outputs(file: str, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        session = GraphSession(variants_package / file, ProviderChoice(CPU))
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, feeds), strict=True))

    whole = outputs(variant.decoder, feeds)
    layers = outputs(variant.split_decoder.decoder_layers, feeds)
    head = outputs(variant.split_decoder.lm_head, {HIDDEN_STATES: layers[HIDDEN_STATES]})
    np.testing.assert_allclose(head[LOGITS], whole[LOGITS], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(layers["present.0.key"], whole["present.0.key"], rtol=1e-5)


def test_attention_of_a_decoder_without_lm_head_has_a_sink_without_weight() -> None:
    checkpoint = open_checkpoint("demo")
    model = build_decoder(
        Weights(checkpoint.tensors), checkpoint.config.decoder, "int4", has_lm_head=False
    )
    sink = model.graph.initializers["head_sink"].const_value
    assert sink is not None
    assert np.exp(sink.numpy()).max() == 0
    nodes = [node for node in model.graph if node.op_type == "GroupQueryAttention"]
    assert len(nodes) == checkpoint.config.decoder.num_hidden_layers
    assert all(node.inputs[11] is model.graph.initializers["head_sink"] for node in nodes)


def test_int4_has_its_decoder_in_parts_if_the_export_asks_for_it(tmp_path: Path) -> None:
    folder = tmp_path / "demo-onnx"
    export_package("demo", folder, precisions=["int4"])
    plain = read_manifest(folder)
    assert plain.variants["int4"].split_decoder is None
    export_package("demo", folder, add=True, precisions=[], split_decoder=True)
    split = read_manifest(folder)
    parts = split.variants["int4"].split_decoder
    assert parts is not None
    assert split.graphs[parts.decoder_layers].onnxruntime == "1.23"
    assert split.graphs[split.variants["int4"].decoder].onnxruntime == "1.22"
    # The whole decoder and its weights are the same bytes.
    for file in (plain.variants["int4"].decoder, *plain.graphs["decoder.int4.onnx"].weights):
        assert plain.files[file] == split.files[file]
    export_package("demo", folder, add=True, precisions=["fp32"])
    assert read_manifest(folder).variants["int4"].split_decoder == parts
