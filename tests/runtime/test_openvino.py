"""ONNX Runtime's OpenVINO provider, for real: the nodes it takes, and the same answers.

`make test-openvino` runs these tests with each of the provider's two forms: the build of ONNX
Runtime in `onnxruntime-openvino`, and the plugin in `onnxruntime-ep-openvino` beside onnxruntime.
The plugin is found without being named.
"""

import json
import logging
import os
import re
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from relative_error import relative_error

import fastvlm_onnx
from fastvlm_onnx import FastVLM, PackageError, ProviderError
from fastvlm_onnx.names import DECODER, PROJECTOR, VISION_ENCODER
from fastvlm_onnx.runtime.ort import compiled_cache
from fastvlm_onnx.runtime.ort.hardware import processor_features
from fastvlm_onnx.runtime.ort.installed import installed_providers
from fastvlm_onnx.runtime.ort.plugins import plugin_devices
from fastvlm_onnx.runtime.ort.providers import CPU
from fastvlm_onnx.runtime.ort.saturation import int8_products_saturate
from fastvlm_onnx.runtime.vision.image import preprocess, read_picture

OPENVINO = "OpenVINOExecutionProvider"
# It rounds to bfloat16 on processors that have it, unless told otherwise.
EXACT = {"load_config": '{"CPU": {"INFERENCE_PRECISION_HINT": "f32"}}'}

try:
    import onnxruntime_ep_openvino as plugin
except ImportError:
    plugin = None

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        OPENVINO not in installed_providers(),
        reason="no OpenVINO provider, or no device on this processor; see `make test-openvino`",
    ),
]
needs_plugin = pytest.mark.skipif(
    not plugin_devices(OPENVINO), reason="the plugin is not installed; run `make test-openvino`"
)


@pytest.fixture(scope="module")
def openvino(package: Path, tmp_path_factory: pytest.TempPathFactory) -> FastVLM:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTVLM_ONNX_HOME", str(tmp_path_factory.mktemp("home")))
        return fastvlm_onnx.load(
            package, providers="openvino", provider_options=EXACT, precision="fp32"
        )


def test_vision_encoder_and_projector_are_taken_whole(openvino: FastVLM) -> None:
    for graph in (VISION_ENCODER, PROJECTOR):
        assert openvino.providers[graph] == OPENVINO
        assert list(openvino.sessions[graph].placement) == [OPENVINO]


def test_the_decoder_is_taken_but_for_its_fused_attention(
    package: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "fastvlm_onnx"):
        model = fastvlm_onnx.load(package, providers="openvino", precision="fp32")
    placement = model.sessions[DECODER].placement
    layers = model.manifest.decoder.num_hidden_layers
    assert placement[CPU] == {"GroupQueryAttention": layers}
    assert f"on the CPU: {layers} GroupQueryAttention" in caplog.text


def test_image_features_equal_those_of_the_cpu(
    openvino: FastVLM, model: FastVLM, picture: Path
) -> None:
    pixel_values = preprocess(read_picture(picture), model.image_size)
    found, expected = (m.image_encoder.encode_pixel_values(pixel_values) for m in (openvino, model))
    assert relative_error(found, expected) < 1e-4


def test_the_sample_pictures_are_answered_alike(
    openvino: FastVLM, questions: dict, picture: Path
) -> None:
    for name, answers in questions.items():
        for prompt, answer in answers.items():
            assert openvino.generate(picture.with_name(name), prompt).text == answer


def test_a_device_it_lacks_is_an_error(package: Path) -> None:
    message = (
        "device_type is GPU" if plugin_devices(OPENVINO) else f"{OPENVINO} could not be started"
    )
    with pytest.raises(ProviderError, match=message):
        fastvlm_onnx.load(package, providers="openvino", provider_options={"device_type": "GPU"})


def test_vision_on_openvino_and_the_decoder_on_the_cpu(
    package: Path, picture: Path, questions: dict
) -> None:
    model = fastvlm_onnx.load(package, providers="vision=openvino,decoder=cpu")
    assert set(model.providers.values()) == {OPENVINO, CPU}
    prompt, answer = next(iter(questions[picture.name].items()))
    assert model.generate(picture, prompt).text == answer


@pytest.mark.skipif(
    bool(plugin_devices(OPENVINO)), reason="the plugin ignores options that it does not know"
)
def test_an_unknown_option_gives_an_error_with_openvinos_message(package: Path) -> None:
    with pytest.raises(ProviderError, match=r"cannot load it \(.*Invalid OpenVINO EP option"):
        fastvlm_onnx.load(package, providers="openvino", provider_options={"colour": "blue"})
    assert fastvlm_onnx.load(package).providers[DECODER] == CPU


@needs_plugin
def test_a_plugin_that_is_named_by_its_library_answers_for_the_vision_graphs(
    package: Path, picture: Path, questions: dict
) -> None:
    prompt, answer = next(iter(questions[picture.name].items()))
    library = f"{OPENVINO}={plugin.get_library_path()}"
    asked = ("--provider", f"vision={OPENVINO}", "--precision", "fp32", "--json")
    done = run(
        "generate", picture, prompt, "--model", package, *asked, "--provider-library", library
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["text"] == answer
    assert found["providers"][VISION_ENCODER] == OPENVINO
    assert found["providers"][DECODER] == CPU


def test_many_images_are_encoded_one_at_a_time(openvino: FastVLM, model: FastVLM) -> None:
    size = model.image_size
    pixel_values = np.random.default_rng(0).random((2, 3, size, size), np.float32)
    found, expected = (m.image_encoder.encode_pixel_values(pixel_values) for m in (openvino, model))
    assert found.shape == expected.shape
    assert relative_error(found, expected) < 1e-4


# --- auto ----------------------------------------------------------------------------------------


@needs_plugin
@pytest.mark.parametrize("precision", ["fast", "int8", "int4"])
def test_auto_runs_the_vision_encoder_of_int8_variants_where_it_is_faster(
    variants_package: Path, picture: Path, questions: dict, precision: str
) -> None:
    model = fastvlm_onnx.load(variants_package, precision=precision)
    session = model.sessions[VISION_ENCODER]
    assert model.providers[PROJECTOR] == model.providers[DECODER] == CPU
    if "amx_bf16" in processor_features():
        assert session.choice.ep == OPENVINO
        assert list(session.placement) == [OPENVINO]
        assert session.path.name == "vision_encoder.256.fp32.onnx"
    else:
        assert session.choice.ep == CPU
        assert "not openvino" in session.choice.reason
    on_cpu = fastvlm_onnx.load(variants_package, precision=precision, providers="cpu")
    for prompt in questions[picture.name]:
        expected = on_cpu.generate(picture, prompt).text
        assert model.generate(picture, prompt).text == expected


@pytest.mark.skipif(
    "FASTVLM_ONNX_TEST_OPENVINO" not in os.environ,
    reason="no package of --target openvino; run `make test-openvino`",
)
def test_auto_runs_the_graph_made_for_openvino_where_its_products_are_exact(
    picture: Path, questions: dict
) -> None:
    package = Path(os.environ["FASTVLM_ONNX_TEST_OPENVINO"])
    model = fastvlm_onnx.load(package, precision="fast")
    session = model.sessions[VISION_ENCODER]
    if int8_products_saturate():
        assert session.choice.ep == CPU
        assert "its int8 products saturate on this processor" in session.choice.reason
        return
    assert list(session.placement) == [OPENVINO]
    assert session.path.name == "vision_encoder.256.qdq.onnx"
    on_cpu = fastvlm_onnx.load(package, precision="fast", providers="cpu")
    for name, answers in questions.items():
        for prompt in answers:
            found, expected = (m.generate(picture.with_name(name), prompt) for m in (model, on_cpu))
            assert found.text == expected.text


def test_auto_keeps_fp32_on_the_cpu(variants_package: Path) -> None:
    model = fastvlm_onnx.load(variants_package, precision="fp32")
    assert set(model.providers.values()) == {CPU}
    assert fastvlm_onnx.load(variants_package).precision == "fast"


# --- compiled graphs -----------------------------------------------------------------------------


@needs_plugin
def test_a_compiled_graph_is_opened_again_and_made_anew_if_it_is_damaged(
    package: Path, user_folder: Path, picture: Path
) -> None:
    def load() -> FastVLM:
        return fastvlm_onnx.load(package, providers="vision=openvino", precision="fp32")

    first = load()
    assert not first.sessions[VISION_ENCODER].is_stored
    pixel_values = preprocess(read_picture(picture), first.image_size)
    expected = first.image_encoder.encode_pixel_values(pixel_values)
    second = load()
    assert second.sessions[VISION_ENCODER].is_stored
    assert second.sessions[VISION_ENCODER].placement == first.sessions[VISION_ENCODER].placement
    np.testing.assert_array_equal(second.image_encoder.encode_pixel_values(pixel_values), expected)
    entry = max(compiled_cache.entries(), key=lambda entry: entry.size_bytes)
    file = max(entry.folder.iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(byte ^ 0xFF for byte in content[middle : middle + 64])
    file.write_bytes(content)
    third = load()
    assert not third.sessions[VISION_ENCODER].is_stored
    np.testing.assert_array_equal(third.image_encoder.encode_pixel_values(pixel_values), expected)
    assert load().sessions[VISION_ENCODER].is_stored


@needs_plugin
def test_altered_weights_are_found_although_a_damaged_compiled_graph_made_them_unread(
    copied_package: Path,
) -> None:
    asked = {"providers": "vision=openvino", "precision": "fp32"}
    fastvlm_onnx.load(copied_package, **asked)
    weights = copied_package / "vision_encoder.fp32.onnx.data"
    content = bytearray(weights.read_bytes())
    content[1000] ^= 0xFF
    weights.write_bytes(content)
    assert fastvlm_onnx.load(copied_package, **asked).sessions[VISION_ENCODER].is_stored
    for entry in compiled_cache.entries():
        (entry.folder / compiled_cache.RECORD_FILE).unlink()
    with pytest.raises(PackageError, match="the file was altered"):
        fastvlm_onnx.load(copied_package, **asked)


@needs_plugin
def test_a_cache_folder_that_cannot_be_written_is_one_warning_and_the_answer_comes(
    package: Path, picture: Path, questions: dict, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    prompt, answer = next(iter(questions[picture.name].items()))
    asked = ("--model", package, "--provider", "vision_encoder=openvino", "--precision", "fp32")
    home = str(tmp_path / "file")
    done = run("generate", picture, prompt, *asked, FASTVLM_ONNX_HOME=home)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(answer)
    (line,) = done.stderr.splitlines()
    assert "compiled graphs cannot be kept there" in line


def test_commands_warn_of_what_stayed_on_the_cpu_and_doctor_shows_it(
    package: Path, picture: Path
) -> None:
    asked = ("--provider", "openvino", "--precision", "fp32")
    done = run("generate", picture, "Hi", "--model", package, "--max-new-tokens", 2, *asked)
    assert done.returncode == 0, done.stderr
    assert "warning: decoder.fp32.onnx: OpenVINOExecutionProvider took" in done.stderr
    placed = run("doctor", package, *asked)
    shown = placed.stdout
    assert placed.returncode == 0, shown
    found = re.search(
        rf"vision_encoder\.256.*\n(?:.*\n)?.*{OPENVINO}: (\d+) of (\d+) nodes\n", shown
    )
    assert found is not None, shown
    assert found[1] == found[2]
    assert "CPUExecutionProvider: 4 of 65 nodes: 4 GroupQueryAttention" in shown
