"""The ways: the rows of the table, and the module that runs each."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Way:
    """One way to run the model, a row of the table.

    Attributes:
        module: a module of `peers` with `convert` and `load`.
        is_peer: the way runs in the environment of the other runtimes.
        text: a description for the reader of the table.
        providers: the providers of this project's graphs.
    """

    module: str
    is_peer: bool
    text: str
    providers: str = "cpu"


OPENVINO_VISION = "static int8 vision (nncf.quantize, default preset, 8 random images)"
OPENVINO_ACTIVATIONS = "activations quantised at run time in groups of 128"
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
        "this project, fast, with the vision encoder of `--target openvino` on OpenVINO's plugin "
        "for ONNX Runtime",
        providers="vision_encoder=openvino,projector=cpu,decoder=cpu",
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
