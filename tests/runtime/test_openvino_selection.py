"""Which graph `auto` gives to OpenVINO, and when. The provider is faked; the packages are real."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import fastvlm_onnx
from fastvlm_onnx.names import DECODER, PREFILL, PROJECTOR, VISION_ENCODER
from fastvlm_onnx.package import Graph, read_manifest
from fastvlm_onnx.runtime.ort import advice, openvino, provider_selection
from fastvlm_onnx.runtime.ort.graph_sessions import graph_files
from fastvlm_onnx.runtime.ort.openvino import vision_graph, with_float_vision
from fastvlm_onnx.runtime.ort.provider_selection import (
    AUTO_RULES,
    ProviderChoice,
    assign_providers,
    preferred_variants,
)
from fastvlm_onnx.runtime.ort.providers import CPU, OPENVINO
from fastvlm_onnx.runtime.ort.session import GraphSession
from fastvlm_onnx.runtime.vision.image_encoder import ImageEncoder
from fastvlm_onnx.variants import variants_for_provider

ROOT = Path(__file__).resolve().parents[2]
FLOAT = Graph([], {"ai.onnx": 21}, "1.20", int8_products=False)
QDQ = Graph([], {"ai.onnx": 21}, "1.20", int8_products=True)


@pytest.fixture
def on_processor(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend a processor, and a plugin that offers a device on it."""

    def pretend(*features: str, saturates: bool = False, is_plugin: bool = True) -> None:
        devices = [object()] if is_plugin else []
        monkeypatch.setattr(openvino, "plugin_devices", lambda ep: devices)
        for module in (openvino, advice):
            monkeypatch.setattr(module, "processor_features", lambda: list(features))
            monkeypatch.setattr(module, "int8_products_saturate", lambda: saturates)

    return pretend


@pytest.mark.parametrize("precision", ["fast", "int8", "int4"])
def test_auto_gives_the_vision_encoder_of_int8_variants_to_openvino(
    on_processor: Callable[..., None], precision: str
) -> None:
    on_processor("avx512_vnni", "amx_bf16", "amx_int8")
    for graph in (FLOAT, QDQ):
        choices = assign_providers({}, precision, [OPENVINO, CPU], graph)
        assert choices[VISION_ENCODER].ep == OPENVINO
        assert {choices[name].ep for name in (PROJECTOR, PREFILL, DECODER)} == {CPU}
        assert choices[VISION_ENCODER].reason


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_auto_never_gives_float_variants_to_openvino(
    on_processor: Callable[..., None], precision: str
) -> None:
    on_processor("avx512_vnni", "amx_bf16", "amx_int8")
    choices = assign_providers({}, precision, [OPENVINO, CPU], FLOAT)
    assert {choice.ep for choice in choices.values()} == {CPU}


@pytest.mark.parametrize(
    ("features", "saturates", "is_plugin", "graph", "words"),
    [
        (["amx_bf16"], False, True, None, "the package has no vision graph for it"),
        (["avx512_vnni"], False, True, FLOAT, "faster there only on a processor with AMX"),
        (["amx_bf16"], False, False, FLOAT, "computes the float graph in float32"),
        (["avx2"], True, True, QDQ, "its int8 products saturate on this processor"),
    ],
)
def test_auto_keeps_the_vision_encoder_on_the_cpu_and_says_why(
    on_processor: Callable[..., None],
    features: list[str],
    saturates: bool,
    is_plugin: bool,
    graph: Graph | None,
    words: str,
) -> None:
    on_processor(*features, saturates=saturates, is_plugin=is_plugin)
    choice = assign_providers({}, "fast", [OPENVINO, CPU], graph)[VISION_ENCODER]
    assert choice.ep == CPU
    assert f"not openvino: {words}" in str(choice.reason) or words in str(choice.reason)


def test_int8_variants_use_the_float_vision_graphs_of_their_package(variants_package: Path) -> None:
    plain = read_manifest(variants_package)
    manifest = with_float_vision(plain)
    on_openvino = {VISION_ENCODER: "openvino", PROJECTOR: "cpu", PREFILL: "cpu", DECODER: "cpu"}
    for name in ("fast", "int8", "int4"):
        assert vision_graph(plain, name, 256) is None
        assert vision_graph(manifest, name, 256) is plain.graphs["vision_encoder.256.fp32.onnx"]
        files = graph_files(manifest, name, 256, on_openvino)
        assert files[VISION_ENCODER] == "vision_encoder.256.fp32.onnx"
        assert files[PROJECTOR] == "projector.int8.onnx"
        assert graph_files(manifest, name, 256, {})[VISION_ENCODER].endswith("int8.onnx")
    assert manifest.variants["fp16"] == plain.variants["fp16"]


def test_a_graph_that_is_made_for_openvino_comes_before_the_float_graph(
    variants_package: Path, tmp_path: Path
) -> None:
    content = json.loads((variants_package / "fastvlm.json").read_text("utf-8"))
    own = {"vision_encoder": {"256": "vision_encoder.256.fp16.onnx"}}
    content["variants"]["fast"]["per_provider"] = {"openvino": own}
    (tmp_path / "fastvlm.json").write_text(json.dumps(content), encoding="utf-8")
    manifest = with_float_vision(read_manifest(tmp_path))
    files = graph_files(manifest, "fast", 256, {VISION_ENCODER: "openvino"})
    assert files[VISION_ENCODER] == "vision_encoder.256.fp16.onnx"


def test_a_package_without_float_graphs_is_as_it_was(package: Path, variants_package: Path) -> None:
    manifest = read_manifest(variants_package)
    del manifest.variants["fp32"]
    assert with_float_vision(manifest) is manifest
    only = read_manifest(package)
    assert with_float_vision(only) == only


def test_openvino_does_not_change_the_variant_of_auto(
    variants_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider_selection, "usable_providers", lambda: [OPENVINO, CPU])
    variants = with_float_vision(read_manifest(variants_package)).variants
    made = [name for name, variant in variants.items() if "openvino" in variant.per_provider]
    assert sorted(made) == ["fast", "int4", "int8", "web"]
    assert preferred_variants({}, made) == variants_for_provider("cpu")
    on_openvino = ProviderChoice(OPENVINO)
    vision = {VISION_ENCODER: on_openvino, PROJECTOR: on_openvino}
    assert preferred_variants(vision, made)[0] == "fast"
    assert preferred_variants(vision)[0] == "fp32"
    everything = dict.fromkeys((VISION_ENCODER, PROJECTOR, PREFILL, DECODER), on_openvino)
    assert preferred_variants(everything, made)[0] == "fp32"


# --- a fixed batch -------------------------------------------------------------------------------


def test_a_vision_encoder_with_a_fixed_batch_encodes_many_images(package: Path) -> None:
    model = fastvlm_onnx.load(package, providers="cpu")
    fixed = {
        graph: GraphSession(model.sessions[graph].path, ProviderChoice(CPU), 1, fixes_batch=True)
        for graph in (VISION_ENCODER, PROJECTOR)
    }
    assert fixed[VISION_ENCODER].get_inputs()[0].shape[0] == 1
    encoder = ImageEncoder(
        fixed[VISION_ENCODER],
        fixed[PROJECTOR],
        image_size=model.image_size,
        num_image_tokens=model.image_encoder.num_image_tokens,
        hidden_size=model.image_encoder.hidden_size,
        cache_bytes=0,
    )
    size = model.image_size
    pixel_values = np.random.default_rng(0).random((3, 3, size, size), np.float32)
    expected = model.image_encoder.encode_pixel_values(pixel_values)
    found = encoder.encode_pixel_values(pixel_values)
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)


# --- the table of doctor -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("features", "saturates", "usable", "row"),
    [
        (["amx_int8"], False, [OPENVINO, CPU], advice.WITH_OPENVINO),
        (["amx_int8"], False, [CPU], advice.WITHOUT_OPENVINO),
        (["avx512_vnni"], False, [OPENVINO, CPU], advice.VNNI_OPENVINO),
        (["avx_vnni"], False, [CPU], advice.VNNI),
        (["avx2"], True, [OPENVINO, CPU], advice.AVX2),
        ([], False, ["CUDAExecutionProvider", CPU], advice.ON_CUDA),
    ],
)
def test_doctor_advises_by_processor_and_wheel(
    on_processor: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    features: list[str],
    saturates: bool,
    usable: list[str],
    row: advice.Advice,
) -> None:
    on_processor(*features, saturates=saturates)
    monkeypatch.setattr(advice.platform, "machine", lambda: "x86_64")
    assert advice.advice(usable) == row
    monkeypatch.setattr(advice.platform, "machine", lambda: "aarch64")
    assert advice.advice([CPU]) == advice.ARM


def test_the_page_has_the_table_of_doctor_and_the_rows_of_auto() -> None:
    text = (ROOT / "docs/providers.md").read_text("utf-8")
    for row in advice.TABLE:
        assert f"| {row.machine} | {row.take} | {row.reason} |" in text
    for rule in AUTO_RULES:
        assert f"| {rule.provider} |" in text
