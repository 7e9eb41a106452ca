"""Every graph against the PyTorch reference, stage by stage, then whole answers."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from random_checkpoint import LanguageSize, fastvithd_tensors, write_random_checkpoint
from relative_error import relative_error
from safetensors.torch import load_file

from fastvlm_onnx.export.architecture.config import VisionConfig
from fastvlm_onnx.export.pipeline import export_package
from fastvlm_onnx.export.sources.open_checkpoint import open_checkpoint
from fastvlm_onnx.export.verification.reference_model import FastViTHD, ReferenceFastVLM
from fastvlm_onnx.package import read_manifest
from fastvlm_onnx.runtime.engine.decoder import Decoder
from fastvlm_onnx.runtime.engine.language_model import LanguageModel
from fastvlm_onnx.runtime.engine.token_embedding import TokenEmbedding
from fastvlm_onnx.runtime.ort.provider_selection import ProviderChoice
from fastvlm_onnx.runtime.ort.providers import CPU
from fastvlm_onnx.runtime.ort.session import GraphSession

# The built-in model has the same architecture in miniature.
FULL_SIZE = pytest.param("full-size FastViTHD", marks=pytest.mark.slow)

# ‖a - b‖ / ‖b‖ in fp32. Folding and fusing reorder sums; about 1e-6 is what that costs.
FP32_TOLERANCE = 1e-4


@dataclass
class Pair:
    """One checkpoint on both sides."""

    package: Path
    reference: ReferenceFastVLM
    image_size: int

    def pixel_values(self) -> np.ndarray:
        rng = np.random.default_rng(5)
        # Smooth, as pictures are: noise alone averages out in the stem.
        coarse = rng.random((1, 3, 8, 8), np.float32)
        return coarse.repeat(self.image_size // 8, 2).repeat(self.image_size // 8, 3)

    def graph(self, name: str) -> onnxruntime.InferenceSession:
        variant = read_manifest(self.package).variants["fp32"]
        files = {
            "vision_encoder": variant.vision_encoder[str(self.image_size)],
            "projector": variant.projector,
        }
        return GraphSession(self.package / files[name], ProviderChoice(CPU))

    def language_model(self) -> LanguageModel:
        manifest = read_manifest(self.package)
        path = self.package / manifest.variants["fp32"].decoder
        decoder = Decoder(GraphSession(path, ProviderChoice(CPU)), manifest.decoder)
        return LanguageModel(decoder, self.embed_tokens(), manifest.decoder)

    def embed_tokens(self) -> TokenEmbedding:
        return TokenEmbedding(
            self.package / "embed_tokens.npy", read_manifest(self.package).decoder
        )

    def inputs_embeds(self) -> np.ndarray:
        """Text, a row for each image token, text: a prompt as the decoder sees it."""
        features = self.reference.encode_image(torch.from_numpy(self.pixel_values())).numpy()[0]
        text = self.embed_tokens()(range(10, 24))
        return np.concatenate([text[:9], features, text[9:]])[None]


def pair_of(checkpoint: Path, package: Path, source: str | Path) -> Pair:
    export_package(source, package)
    config = open_checkpoint(source).config
    reference = ReferenceFastVLM(config)
    reference.load_checkpoint(load_file(checkpoint / "model.safetensors"))
    return Pair(package, reference, config.vision.image_size)


@pytest.fixture(scope="module", params=["demo", FULL_SIZE])
def pair(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    demo_checkpoint: Path,
    small_language: LanguageSize,
) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    if request.param == "demo":
        return pair_of(demo_checkpoint, folder / "demo-onnx", "demo")
    checkpoint = folder / "full-size"
    write_random_checkpoint(checkpoint, small_language)
    return pair_of(checkpoint, folder / "full-size-onnx", checkpoint)


def test_vision_encoder_matches_pytorch(pair: Pair) -> None:
    pixel_values = pair.pixel_values()
    with torch.inference_mode():
        expected = pair.reference.vision_encoder(torch.from_numpy(pixel_values)).numpy()
    (found,) = pair.graph("vision_encoder").run(None, {"pixel_values": pixel_values})
    assert np.isfinite(expected).all()
    assert expected.std() > 0.01
    assert relative_error(found, expected) < FP32_TOLERANCE


def test_projector_matches_pytorch(pair: Pair) -> None:
    width = pair.reference.config.vision.hidden_size
    hidden_states = np.random.default_rng(6).standard_normal((1, 7, width), np.float32)
    with torch.inference_mode():
        expected = pair.reference.projector(torch.from_numpy(hidden_states)).numpy()
    (found,) = pair.graph("projector").run(None, {"image_hidden_states": hidden_states})
    assert relative_error(found, expected) < FP32_TOLERANCE


def test_decoder_matches_pytorch(pair: Pair) -> None:
    inputs_embeds = pair.inputs_embeds()
    model = pair.language_model()
    cache = model.new_cache(inputs_embeds.shape[1])
    found = model.prefill(inputs_embeds, cache)
    with torch.inference_mode():
        output = pair.reference.decoder(
            inputs_embeds=torch.from_numpy(inputs_embeds), use_cache=True
        )
    assert relative_error(found, output.logits[0, -1].numpy()) < FP32_TOLERANCE
    _, *presents = cache.binding(model.decoder.session).get_outputs()
    for i, layer in enumerate(output.past_key_values.layers):
        for buffer, expected in zip(
            presents[2 * i : 2 * i + 2], (layer.keys, layer.values), strict=True
        ):
            assert relative_error(buffer.numpy(), expected.numpy()) < FP32_TOLERANCE


def test_greedy_tokens_equal_pytorchs(pair: Pair) -> None:
    inputs_embeds = pair.inputs_embeds()
    expected = pair.reference.generate_greedy(torch.from_numpy(inputs_embeds), 32)
    model = pair.language_model()
    logits = model.teacher_forced_logits(inputs_embeds, expected)
    assert [int(row.argmax()) for row in logits] == expected


def test_one_token_at_a_time_equals_one_pass(pair: Pair) -> None:
    model = pair.language_model()
    begun, added = pair.inputs_embeds(), [40, 41, 42, 43, 44]
    whole = np.concatenate([begun, model.embed([added])], axis=1)
    expected = model.prefill(whole, model.new_cache(whole.shape[1]))
    cache = model.new_cache(whole.shape[1])
    model.prefill(begun, cache)
    for token_id in added:
        found = model.decode_one_step(token_id, cache)
    assert relative_error(found, expected) < FP32_TOLERANCE


def test_embedding_rows_are_the_checkpoints(pair: Pair) -> None:
    vocab_size = pair.reference.config.decoder.vocab_size
    expected = pair.reference.embed_tokens(torch.arange(vocab_size)).detach().numpy()
    np.testing.assert_array_equal(pair.embed_tokens()(range(vocab_size)), expected)


def test_the_reference_has_the_published_tensors() -> None:
    """All 629, but for the classification head that predict.py computes and throws away."""
    published = fastvithd_tensors()
    assert len(published) == 629
    config = VisionConfig(
        image_size=1024,
        depths=(2, 12, 24, 4, 2),
        widths=(96, 192, 384, 768, 1536),
        ffn_widths=(384, 768, 1536, 3072, 6144),
        hidden_size=3072,
        se_width=192,
    )
    with torch.device("meta"):
        state = FastViTHD(config).state_dict()
    assert {name: tuple(t.shape) for name, t in state.items()} == {
        name: shape for name, shape in published.items() if name != "head.proj"
    }


# --- shapes and operators that other runtimes rely on --------------------------------------------


@pytest.fixture(scope="module")
def load_graph(package: Path) -> Callable[[str], onnx.ModelProto]:
    return lambda name: onnx.load(package / name, load_external_data=False)


def dims(values: list[onnx.ValueInfoProto]) -> dict[str, list[int | str]]:
    return {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in values
    }


def test_the_graphs_have_the_promised_inputs_and_outputs(load_graph) -> None:
    graph = load_graph("vision_encoder.256.fp32.onnx").graph
    assert dims(graph.input) == {"pixel_values": ["batch_size", 3, 256, 256]}
    assert dims(graph.output) == {"image_hidden_states": ["batch_size", 16, 512]}

    graph = load_graph("projector.fp32.onnx").graph
    assert dims(graph.input) == {"image_hidden_states": ["batch_size", "num_image_tokens", 512]}
    assert dims(graph.output) == {"image_features": ["batch_size", "num_image_tokens", 128]}

    graph = load_graph("decoder.fp32.onnx").graph
    past = ["batch_size", 2, "past_sequence_length", 32]
    present = ["batch_size", 2, "total_sequence_length", 32]
    pasts, presents = {}, {}
    for i in range(4):
        for kind in ("key", "value"):
            pasts[f"past_key_values.{i}.{kind}"] = past
            presents[f"present.{i}.{kind}"] = present
    assert (
        dims(graph.input)
        == {
            "inputs_embeds": ["batch_size", "sequence_length", 128],
            "attention_mask": ["batch_size", "total_sequence_length"],
        }
        | pasts
    )
    assert dims(graph.output) == {"logits": ["batch_size", 1, 739]} | presents


@pytest.mark.parametrize("name", ["vision_encoder.256.fp32.onnx", "projector.fp32.onnx"])
def test_vision_and_projector_use_standard_operators_only(load_graph, name: str) -> None:
    model = load_graph(name)
    assert {node.domain for node in model.graph.node} == {""}
    assert {opset.domain for opset in model.opset_import} == {""}


@pytest.mark.parametrize(
    "name",
    ["vision_encoder.256.fp32.onnx", "projector.fp32.onnx", "decoder.fp32.onnx"],
)
def test_the_graphs_pass_onnxs_own_checker(package: Path, name: str) -> None:
    onnx.checker.check_model(str(package / name))


@pytest.mark.parametrize(
    ("graph", "name"),
    [
        ("vision_encoder.256.fp32.onnx", "network.2.1.convffn.fc2.weight"),
        ("projector.fp32.onnx", "mm_projector.2.bias"),
        ("decoder.fp32.onnx", "layers.3.mlp.down_proj.weight"),
    ],
)
def test_initializers_are_named_as_in_the_checkpoint(load_graph, graph: str, name: str) -> None:
    assert name in {initializer.name for initializer in load_graph(graph).graph.initializer}


def test_several_image_sizes_share_one_weight_file(checkpoint: Path, tmp_path: Path) -> None:
    export_package(checkpoint, tmp_path / "onnx", image_sizes=[128, 192])
    files = [path.name for path in (tmp_path / "onnx").glob("vision_encoder*")]
    assert sorted(files) == [
        "vision_encoder.128.fp32.onnx",
        "vision_encoder.192.fp32.onnx",
        "vision_encoder.fp32.onnx.data",
    ]
    reference = ReferenceFastVLM(open_checkpoint(checkpoint).config)
    reference.load_checkpoint(load_file(checkpoint / "model.safetensors"))
    for image_size in (128, 192):
        pair = Pair(tmp_path / "onnx", reference, image_size)
        pixel_values = pair.pixel_values()
        with torch.inference_mode():
            expected = reference.vision_encoder(torch.from_numpy(pixel_values)).numpy()
        (found,) = pair.graph("vision_encoder").run(None, {"pixel_values": pixel_values})
        assert relative_error(found, expected) < FP32_TOLERANCE
