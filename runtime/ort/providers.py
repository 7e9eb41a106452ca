"""ONNX Runtime's execution providers: their names, packages and default options."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Final

from fastvlm_onnx.errors import ProviderError
from fastvlm_onnx.package import parse_version
from fastvlm_onnx.telemetry import disable_telemetry

ProviderOptions = Mapping[str, str]

LONGEST_REASON: Final = 300  # characters of another library's message
# A line of ONNX Runtime's source, and the signature of the function that holds it.
_SOURCE_LINE: Final = re.compile(
    r"([^\s:]*/)?\w+\.(cc|cpp|cu|h):\d+(\s[\w:<>*&,~\s]{0,200}::~?\w+\([^()]{0,500}\)( const)?)?"
)
# In older versions, attention on the CPU cannot append several positions to a filled cache.
OLDEST_ONNXRUNTIME: Final = (1, 20)
CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
COREML: Final = "CoreMLExecutionProvider"
OPENVINO: Final = "OpenVINOExecutionProvider"


@dataclass(frozen=True)
class Provider:
    """One of ONNX Runtime's execution providers.

    Attributes:
        ep: ONNX Runtime's name of the provider.
        install: the command that installs it.
        options: options that are set unless the caller sets them.
        memory: ONNX Runtime's name of the memory that holds the provider's tensors.
        plugin: the module that brings the provider as a plugin; None where no module is known.
        fixes_batch: the vision graphs are opened for one image, because the provider takes no
            graph, or runs it slower, if the batch is free.
        keeps_contexts: the plugin stores its compiled graph as an EPContext model.
    """

    ep: str
    install: str
    options: ProviderOptions = field(default_factory=dict)
    memory: str = "cpu"
    plugin: str | None = None
    fixes_batch: bool = False
    keeps_contexts: bool = False


INSTEAD: Final = "pip uninstall onnxruntime && pip install"
PROVIDERS: Final[Mapping[str, Provider]] = {
    "cpu": Provider(CPU, 'pip install "fastvlm-onnx[cpu]"'),
    "cuda": Provider(
        CUDA,
        'pip uninstall onnxruntime && pip install "fastvlm-onnx[cuda]"',
        {
            # The default doubles the memory that it takes from the card each time.
            "arena_extend_strategy": "kSameAsRequested",
            # The default tries every algorithm of every convolution before the first answer.
            "cudnn_conv_algo_search": "HEURISTIC",
            # Sums of squares in float32: in float16 they overflow, and the row is silently zero.
            "enable_skip_layer_norm_strict_mode": "1",
        },
        memory="cuda",
    ),
    "tensorrt": Provider("TensorrtExecutionProvider", 'pip install "fastvlm-onnx[cuda]" tensorrt'),
    "coreml": Provider(
        COREML,
        'pip install "fastvlm-onnx[cpu]" on macOS',
        {
            # The default, NeuralNetwork, takes no float16.
            "ModelFormat": "MLProgram",
            # With ALL, float16 programs were slower than on the CPU (docs/providers.md).
            "MLComputeUnits": "CPUAndNeuralEngine",
            "RequireStaticInputShapes": "1",
        },
    ),
    "openvino": Provider(
        OPENVINO,
        'pip install "fastvlm-onnx[cpu,openvino]"',
        {"device_type": "CPU"},
        plugin="onnxruntime_ep_openvino",
        fixes_batch=True,
        keeps_contexts=True,
    ),
    "directml": Provider("DmlExecutionProvider", f"{INSTEAD} onnxruntime-directml"),
    "migraphx": Provider("MIGraphXExecutionProvider", f"{INSTEAD} onnxruntime-migraphx"),
    "mlx": Provider(
        "MLXExecutionProvider", "pip install onnxruntime-ep-mlx", plugin="onnxruntime_ep_mlx"
    ),
    "qnn": Provider("QNNExecutionProvider", f"{INSTEAD} onnxruntime-qnn"),
    "webgpu": Provider(
        "WebGpuExecutionProvider",
        "pip install onnxruntime-ep-webgpu",
        plugin="onnxruntime_ep_webgpu",
    ),
}
_SHORT_NAMES: Final = {provider.ep: name for name, provider in PROVIDERS.items()}


def short_name(ep: str) -> str:
    """Return `cuda` for CUDAExecutionProvider; a provider without a short name keeps its name."""
    return _SHORT_NAMES.get(ep, ep)


def import_onnxruntime() -> ModuleType:
    """Import onnxruntime, which is an extra because its cpu and gpu wheels exclude each other.

    Raises:
        ProviderError: ONNX Runtime is not installed, or older than every variant needs.
    """
    disable_telemetry()
    try:
        import onnxruntime
    except ImportError as error:
        raise ProviderError(
            f"ONNX Runtime cannot be imported ({error}); install it with "
            '`pip install "fastvlm-onnx[cpu]"`, or `[cuda]` for NVIDIA.'
        ) from None
    if parse_version(onnxruntime.__version__) < OLDEST_ONNXRUNTIME:
        raise ProviderError(
            f"ONNX Runtime is {onnxruntime.__version__}, expected at least "
            f"{'.'.join(map(str, OLDEST_ONNXRUNTIME))}; run `pip install -U onnxruntime`."
        )
    return onnxruntime


@cache
def preload_cuda() -> None:
    """Load CUDA's libraries from the pip packages that hold them, where they are installed."""
    ort = import_onnxruntime()
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()


def in_one_line(error: BaseException) -> str:
    """Return an exception's message as one line.

    A long message is cut to its end, where ONNX Runtime states the reason. Lines of ONNX Runtime's
    source, such as "model.cc:182", and the functions in them are left out.
    """
    text = " ".join(_SOURCE_LINE.sub(" ", str(error)).split()) or type(error).__name__
    return text if len(text) <= LONGEST_REASON else f"... {text[-LONGEST_REASON:]}"
