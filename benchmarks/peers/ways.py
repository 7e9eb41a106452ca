"""The ways: the rows of the table, and the module that runs each."""

import sys
from dataclasses import dataclass
from pathlib import Path

from peers import environment


@dataclass(frozen=True)
class Way:
    """One way to run the model, a row of the table.

    Attributes:
        module: a module of `peers` with `convert` and `load`.
        is_peer: the way runs in the environment of the other runtimes.
        text: a description for the reader of the table.
        providers: the providers of this project's graphs.
        is_openvino_build: the way runs in the environment whose ONNX Runtime is OpenVINO's build.
    """

    module: str
    is_peer: bool
    text: str
    providers: str = "cpu"
    is_openvino_build: bool = False

    @property
    def python(self) -> Path:
        """The interpreter of the way's environment."""
        if self.is_openvino_build:
            return environment.OPENVINO_BUILD_PYTHON
        return environment.PYTHON if self.is_peer else Path(sys.executable)


OPENVINO_VISION = "static int8 vision (nncf.quantize, default preset, 8 random images)"
OPENVINO_ACTIVATIONS = "activations quantised at run time in groups of 128"
OUR_OPENVINO = "this project, fast, with the vision encoder of `--target openvino` on OpenVINO"
OUR_OPENVINO_PROVIDERS = "vision_encoder=openvino,projector=cpu,decoder=cpu"
GENAI = "token ids (with lookup) in place of the image; this project's fp32 vision graphs"
WAYS = {
    "ours-fp32": Way("ours", False, "this project, fp32"),
    "ours-fp16": Way("ours", False, "this project, fp16 weights"),
    "ours-int8": Way("ours", False, "this project, int8"),
    "ours-int4": Way("ours", False, "this project, int8 vision, int4 decoder"),
    "ours-fast": Way("ours", False, "this project, int8 vision and prefill, int4 decoder"),
    "ours-fast-openvino": Way(
        "ours",
        False,
        f"{OUR_OPENVINO}'s plugin for ONNX Runtime",
        providers=OUR_OPENVINO_PROVIDERS,
    ),
    # The plugin offers no device on AMD processors, and this build does.
    "ours-fast-openvino-build": Way(
        "ours",
        False,
        f"{OUR_OPENVINO}'s build of ONNX Runtime, with that build's CPU provider for the decoder",
        providers=OUR_OPENVINO_PROVIDERS,
        is_openvino_build=True,
    ),
    "pytorch": Way("eager", False, "PyTorch eager fp32: FastViTHD, transformers' Qwen2"),
    "openvino-fp32": Way("openvino_model", True, "OpenVINO fp32, keys and values in fp32"),
    "openvino-bf16": Way(
        "openvino_model", True, "OpenVINO fp32 files at its defaults: bf16 if the processor has it"
    ),
    "openvino-int8": Way(
        "openvino_model",
        True,
        f"OpenVINO, {OPENVINO_VISION}; int8 weights per channel, {OPENVINO_ACTIVATIONS}",
    ),
    "openvino-int4": Way(
        "openvino_model",
        True,
        f"OpenVINO, {OPENVINO_VISION}; symmetric int4 weights in groups of 128, lm_head int8, "
        f"{OPENVINO_ACTIVATIONS}",
    ),
    "onnxruntime-genai-int4": Way(
        "genai",
        True,
        f"onnxruntime-genai int4, blocks of 32 (its default), lm_head int4 too, {GENAI}",
    ),
    "onnxruntime-genai-int4-128": Way(
        "genai", True, f"onnxruntime-genai int4, blocks of 128, lm_head int4 too, {GENAI}"
    ),
    "onnxruntime-genai-int4-128-head8": Way(
        "genai", True, f"onnxruntime-genai int4, blocks of 128, lm_head int8, {GENAI}"
    ),
}
