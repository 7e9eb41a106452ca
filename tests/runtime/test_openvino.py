"""ONNX Runtime's OpenVINO provider, for real: what it takes, and that the answers are the same.

Needs `onnxruntime-openvino` in place of onnxruntime: `make test-openvino` has it.
"""

import logging
from pathlib import Path

import numpy as np
import pytest
from command_line import run

import fastvlm_onnx
from fastvlm_onnx import FastVLM, ProviderError
from fastvlm_onnx.names import DECODER, PROJECTOR, VISION_ENCODER
from fastvlm_onnx.runtime.ort.providers import CPU, installed_providers
from fastvlm_onnx.runtime.vision.image import preprocess, read_picture

OPENVINO = "OpenVINOExecutionProvider"
# It rounds to bfloat16 on processors that have it, unless told otherwise.
EXACT = {"load_config": '{"CPU": {"INFERENCE_PRECISION_HINT": "f32"}}'}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        OPENVINO not in installed_providers(),
        reason="this ONNX Runtime has no OpenVINO provider; run `make test-openvino`",
    ),
]


@pytest.fixture(scope="module")
def openvino(package: Path) -> FastVLM:
    return fastvlm_onnx.load(
        package, providers="openvino", provider_options=EXACT, precision="fp32"
    )


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_vision_encoder_and_projector_are_taken_whole(openvino: FastVLM) -> None:
    for graph in (VISION_ENCODER, PROJECTOR):
        assert openvino.providers[graph] == OPENVINO
        assert list(openvino.sessions[graph].placement) == [OPENVINO]


def test_of_the_decoder_all_but_the_fused_attention(
    package: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "fastvlm_onnx"):
        model = fastvlm_onnx.load(package, providers="openvino", precision="fp32")
    placement = model.sessions[DECODER].placement
    layers = model.manifest.decoder.num_hidden_layers
    assert placement[CPU] == {"GroupQueryAttention": layers}
    assert f"on the CPU: {layers} GroupQueryAttention" in caplog.text


def test_image_features_are_the_cpus(openvino: FastVLM, model: FastVLM, picture: Path) -> None:
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
    with pytest.raises(ProviderError, match="OpenVINOExecutionProvider could not be started"):
        fastvlm_onnx.load(package, providers="openvino", provider_options={"device_type": "GPU"})


def test_one_graph_there_and_the_other_here(package: Path, picture: Path, questions: dict) -> None:
    model = fastvlm_onnx.load(package, providers="vision=openvino,decoder=cpu")
    assert set(model.providers.values()) == {OPENVINO, CPU}
    prompt, answer = next(iter(questions[picture.name].items()))
    assert model.generate(picture, prompt).text == answer


def test_an_option_it_refuses_shows_its_words(package: Path) -> None:
    with pytest.raises(ProviderError, match=r"cannot load it \(.*Invalid OpenVINO EP option"):
        fastvlm_onnx.load(package, providers="openvino", provider_options={"colour": "blue"})
    assert fastvlm_onnx.load(package).providers[DECODER] == CPU


def test_commands_warn_of_what_stayed_on_the_cpu_and_doctor_shows_it(
    package: Path, picture: Path
) -> None:
    asked = ("--provider", "openvino", "--precision", "fp32")
    done = run("generate", picture, "Hi", "--model", package, "--max-new-tokens", 2, *asked)
    assert done.returncode == 0
    assert "warning: decoder.fp32.onnx: OpenVINOExecutionProvider took" in done.stderr
    placed = run("doctor", package, *asked)
    assert placed.returncode == 0, placed.stdout
    assert "OpenVINOExecutionProvider: 206 of 206 nodes" in placed.stdout
    assert "CPUExecutionProvider: 4 of 65 nodes: 4 GroupQueryAttention" in placed.stdout
