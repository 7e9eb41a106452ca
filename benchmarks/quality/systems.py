"""The systems that are compared: the rows of the table, and the module that runs each."""

from dataclasses import dataclass

from fastvlm_onnx.variants import CPU_VARIANTS


@dataclass(frozen=True)
class System:
    """A way to run the language model.

    Attributes:
        module: a module of `quality` with `load` and `language_bytes`.
        text: a description for the reader of the table.
        converter: a module of `quality` with `convert`; None where nothing is converted.
        peer: the module of `peers` whose packages it needs; None in the project's environment.
    """

    module: str
    text: str
    converter: str | None = None
    peer: str | None = None

    @property
    def is_peer(self) -> bool:
        """Whether the system runs in the environment of the other runtimes."""
        return self.peer is not None


def _ours(name: str) -> System:
    return System("ours", f"this project, {name}")


def _genai(text: str) -> System:
    return System("genai", f"onnxruntime-genai, {text}", converter="genai", peer="genai")


def _openvino(text: str) -> System:
    return System(
        "openvino_model",
        f"OpenVINO, {text}; activations quantised at run time in groups of 128, keys and values "
        "in OpenVINO's default format",
        converter="openvino_graphs",
        peer="openvino_model",
    )


REFERENCE = "ours-fp32"
OURS = {f"ours-{name}": _ours(name) for name in CPU_VARIANTS}
PYTORCH = "pytorch"
PEERS = {
    PYTORCH: System("pytorch", "PyTorch fp32, transformers' Qwen2; the truth"),
    "genai-int4-32": _genai("int4 in blocks of 32, its default; lm_head int4 too"),
    "genai-int4-128": _genai("int4 in blocks of 128; lm_head int4 too"),
    "genai-k-quant-mixed": _genai("k_quant_mixed: int4, with int8 in lm_head and some layers"),
    "openvino-int8": _openvino("int8 weights a channel"),
    "openvino-int4": _openvino("nncf's int4 in groups of 128 with zero points, without data"),
    "openvino-int4-data": _openvino(
        "nncf's int4 in groups of 128 with zero points, with AWQ and scale estimation"
    ),
}
SYSTEMS = OURS | PEERS
