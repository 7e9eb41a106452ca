"""Decoders in 16 bits on activations beyond float16: nothing overflows, and little is lost."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnxscript import nn
from random_checkpoint import LanguageSize, write_random_checkpoint
from relative_error import relative_error
from safetensors.numpy import load_file, save_file

import fastvlm_onnx
from fastvlm_onnx import FastVLM, ProviderError
from fastvlm_onnx.export.graphs import decoder_precisions
from fastvlm_onnx.export.graphs.decoder_precisions import DecoderPrecision, LMHead
from fastvlm_onnx.export.graphs.layers import parameter
from fastvlm_onnx.export.graphs.linear import split
from fastvlm_onnx.export.pipeline import export_package
from fastvlm_onnx.export.tensors.lazy_array import stacked, transposed
from fastvlm_onnx.export.verification.verify import verify_package

LARGEST_HALF = float(np.finfo(np.float16).max)
OUTLIERS = (90, 91)
PROMPT = [120, 300, 90, 17, 201, 91, 388, 222]
ANSWER = [3, 120, 44]
FLOAT, BFLOAT16 = ir.DataType.FLOAT, ir.DataType.BFLOAT16


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, demo_vision: dict) -> Path:
    """Tokens that push the residual stream, and what goes into a down projection, beyond 1e5."""
    folder = tmp_path_factory.mktemp("activations") / "checkpoint"
    language = LanguageSize(256, 768, 6, 4, 2, 768, 739, is_tied=False)
    write_random_checkpoint(
        folder, language, vision=demo_vision, image_size=128, outlier_tokens=OUTLIERS
    )
    tensors = load_file(folder / "model.safetensors")
    embeddings = tensors["model.embed_tokens.weight"]
    rows = embeddings[list(OUTLIERS)].astype(np.float32)
    embeddings[list(OUTLIERS)] = (rows * (1.5e5 / np.abs(rows).max())).astype(embeddings.dtype)
    for name in ("gate", "up"):
        weight = tensors[f"model.layers.2.mlp.{name}_proj.weight"]
        weight[:4] = (weight[:4].astype(np.float32) * 2000).astype(weight.dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def export(checkpoint: Path) -> Callable[[str], Path]:
    def export(precision: str, name: str = "") -> Path:
        folder = checkpoint.with_name(f"{name or precision}-onnx")
        if not folder.exists():
            export_package(checkpoint, folder, precisions=[precision])
        return folder

    return export


@pytest.fixture(scope="module")
def exact(export: Callable[[str], Path]) -> np.ndarray:
    return logits_of(fastvlm_onnx.load(export("fp32")))


def logits_of(model: FastVLM) -> np.ndarray:
    language_model = model.language_model
    steps = language_model.teacher_forced_logits(language_model.embed([PROMPT]), ANSWER)
    return np.array([row.copy() for row in steps])


def run_as_written(folder: Path, precision: str, names: list[str]) -> list[np.ndarray]:
    """These values of the decoder, every node run: ONNX Runtime would leave out pairs of casts."""
    model = onnx.load(folder / f"decoder.{precision}.onnx")
    known = {output.name for output in model.graph.output}
    model.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in known
    )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    embeds = fastvlm_onnx.load(folder, precision=precision).language_model.embed([PROMPT])
    feeds = {"inputs_embeds": embeds, "attention_mask": np.ones((1, len(PROMPT)), np.int64)}
    for value in session.get_inputs()[2:]:
        dtype = np.float16 if "float16" in value.type else np.float32
        feeds[value.name] = np.zeros((1, 2, 0, 64), dtype)
    return session.run(names, feeds)


def nodes(folder: Path, precision: str) -> list[onnx.NodeProto]:
    path = folder / f"decoder.{precision}.onnx"
    return list(onnx.load(path, load_external_data=False).graph.node)


def test_the_planted_activations_are_beyond_float16(export: Callable[[str], Path]) -> None:
    """Otherwise the tests below show nothing."""
    folder = export("fp32")
    # The input of layer 2's down projection, and the residual stream after it.
    down = next(n for n in nodes(folder, "fp32") if "layers.2.mlp.down_proj.weight" in n.input)
    norm = next(n for n in nodes(folder, "fp32") if "layers.3.input_layernorm.weight" in n.input)
    for found in run_as_written(folder, "fp32", [down.input[0], norm.output[3]]):
        assert np.abs(found).max() > 1e5 > LARGEST_HALF


@pytest.mark.parametrize("precision", ["fp16", "int4_cuda"])
def test_activations_beyond_float16_stay_float32(
    export: Callable[[str], Path], precision: str
) -> None:
    folder = export(precision)
    halved = [
        node.input[0]
        for node in nodes(folder, precision)
        if node.op_type == "Cast" and node.attribute[0].i == onnx.TensorProto.FLOAT16
    ]
    assert halved
    logits, *found = run_as_written(folder, precision, ["logits", *halved])
    assert np.isfinite(logits).all()
    assert max(np.abs(values).max() for values in found) < LARGEST_HALF / 10


@pytest.mark.parametrize("precision", ["fp16", "int4_cuda"])
def test_float16_variants_are_near_float32(
    export: Callable[[str], Path], exact: np.ndarray, precision: str
) -> None:
    found = logits_of(fastvlm_onnx.load(export(precision), precision=precision))
    # int4's own rounding is no matter of float16, but goes other ways from another input.
    alike = {
        "fp16": (exact, 0.01),
        "int4_cuda": (logits_of(fastvlm_onnx.load(export("int4"))), 0.05),
    }
    reference, most = alike[precision]
    assert relative_error(found, reference) < most


def test_a_decoder_all_in_float16_would_overflow(
    export: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    form = replace(decoder_precisions.DECODER_PRECISIONS["fp16"], down_linear=None)
    monkeypatch.setitem(decoder_precisions.DECODER_PRECISIONS, "fp16", form)
    folder = export("fp16", "narrow")
    down = next(n for n in nodes(folder, "fp16") if "layers.2.mlp.down_proj.weight" in n.input)
    (product,) = run_as_written(folder, "fp16", [down.output[0]])
    # Without a word: the next norm makes zeros of such a row, and the logits are finite again.
    assert np.isinf(product).any()


# --- bfloat16, which the CPU does not compute in -------------------------------------------------


def rounded(op, x: ir.Value) -> ir.Value:
    return op.Cast(op.Cast(x, to=BFLOAT16), to=FLOAT)


class RoundedLinear(nn.Module):
    """Float16Linear's twin for the CPU: rounded to bfloat16 at the same places, in float32."""

    def __init__(self, weights: list, bias: object = None) -> None:
        super().__init__()
        self.sizes = [weight.shape[0] for weight in weights]
        self.weight = parameter(transposed(stacked(weights)), BFLOAT16)
        self.bias = None if bias is None else parameter(bias)

    def forward(self, op, x: ir.Value) -> list[ir.Value]:
        product = rounded(op, op.MatMul(rounded(op, x), op.Cast(self.weight, to=FLOAT)))
        return split(op, product if self.bias is None else op.Add(product, self.bias), self.sizes)


def test_bfloat16_only_loses_digits(
    export: Callable[..., Path], exact: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = DecoderPrecision(RoundedLinear, lambda weight: LMHead(weight, FLOAT))
    monkeypatch.setitem(decoder_precisions.DECODER_PRECISIONS, "fp16", twin)
    found = logits_of(fastvlm_onnx.load(export("fp16", "rounded"), precision="fp16"))
    assert np.isfinite(found).all()
    assert relative_error(found, exact) < 0.05


def test_the_bfloat16_graph_rounds_where_its_float32_twin_does(
    export: Callable[[str], Path],
) -> None:
    folder = export("bf16")
    path = folder / "decoder.bf16.onnx"
    onnx.checker.check_model(str(path))
    model = onnx.load(path, load_external_data=False)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Gemm"):
            assert types[node.input[1]] == onnx.TensorProto.BFLOAT16
    for value in model.graph.input[2:]:
        assert value.type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16
    # Residual stream and norms are float32.
    norms = [n for n in model.graph.node if n.op_type == "SkipSimplifiedLayerNormalization"]
    assert norms
    assert all(types[node.input[2]] == onnx.TensorProto.FLOAT for node in norms)


def test_bfloat16_on_the_cpu_is_refused(export: Callable[[str], Path]) -> None:
    with pytest.raises(ProviderError, match="bf16 has no kernels on the CPU"):
        fastvlm_onnx.load(export("bf16"), providers="cpu", precision="bf16")


def test_verify_reports_the_largest_activations(
    checkpoint: Path, export: Callable[[str], Path]
) -> None:
    agreement = verify_package(export("fp32"), checkpoint, prompts=["Hi"], steps=2)
    largest = agreement.variants["fp32"].largest_activations
    assert list(largest) == ["vision_encoder", "projector", "decoder"]
    assert 0 < largest["vision_encoder"] < LARGEST_HALF
    # The planted layer is beyond float16 for any prompt.
    assert largest["decoder"] > LARGEST_HALF
