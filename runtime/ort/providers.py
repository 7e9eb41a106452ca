"""ONNX Runtime's execution providers: names, packages, default options, and which are installed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Final

from fastvlm_onnx.errors import ProviderError
from fastvlm_onnx.package import parse_version
from fastvlm_onnx.telemetry import disable_telemetry

ProviderOptions = Mapping[str, str]

LONGEST_REASON: Final = 300  # characters of another library's message
# In older versions, attention on the CPU cannot append several positions to a filled cache.
OLDEST_ONNXRUNTIME: Final = (1, 20)
CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
COREML: Final = "CoreMLExecutionProvider"


@dataclass(frozen=True)
class Provider:
    """One of ONNX Runtime's execution providers.

    Attributes:
        ep: ONNX Runtime's name of the provider.
        install: the command that installs it.
        options: options that are set unless the caller sets them.
        memory: ONNX Runtime's name of the memory that holds the provider's tensors.
    """

    ep: str
    install: str
    options: ProviderOptions = field(default_factory=dict)
    memory: str = "cpu"


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
        "OpenVINOExecutionProvider", f"{INSTEAD} onnxruntime-openvino", {"device_type": "CPU"}
    ),
    "directml": Provider("DmlExecutionProvider", f"{INSTEAD} onnxruntime-directml"),
    "migraphx": Provider("MIGraphXExecutionProvider", f"{INSTEAD} onnxruntime-migraphx"),
    "mlx": Provider("MLXExecutionProvider", "pip install onnxruntime-ep-mlx"),
    "qnn": Provider("QNNExecutionProvider", f"{INSTEAD} onnxruntime-qnn"),
    "webgpu": Provider("WebGpuExecutionProvider", f"{INSTEAD} onnxruntime-webgpu"),
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


def installed_providers() -> list[str]:
    """Return ONNX Runtime's names of the providers in this build and of the registered plugins."""
    ort = import_onnxruntime()
    names = list(ort.get_available_providers())
    if hasattr(ort, "get_ep_devices"):
        names += [device.ep_name for device in ort.get_ep_devices()]
    return list(dict.fromkeys(names))


def register_library(name: str, path: str | Path) -> None:
    """Make a plugin provider known to ONNX Runtime.

    Raises:
        ProviderError: the file is no provider library, or this ONNX Runtime takes no plugins.
    """
    ort = import_onnxruntime()
    if not hasattr(ort, "register_execution_provider_library"):
        raise ProviderError(
            f"ONNX Runtime {ort.__version__} takes no plugin providers; run "
            "`pip install -U onnxruntime`."
        )
    if name in _registered():
        return
    try:
        ort.register_execution_provider_library(name, str(path))
    except Exception as error:
        raise ProviderError(
            f"{path}: cannot be registered as {name} ({in_one_line(error)}); expected the library "
            "of a plugin provider made for this ONNX Runtime."
        ) from None
    _registered().add(name)


@cache
def _registered() -> set[str]:
    # ONNX Runtime does not list its registered plugins, and refuses a plugin that comes twice.
    return set()


def in_one_line(error: BaseException) -> str:
    """Return an exception's message as one line.

    A long message is cut to its end, where ONNX Runtime states the reason.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST_REASON else f"... {text[-LONGEST_REASON:]}"


def resolve_provider(name: str) -> str:
    """Return ONNX Runtime's name of an installed provider.

    Raises:
        ProviderError: the name is unknown, or the provider is not installed.
    """
    provider = PROVIDERS.get(name.lower()) or PROVIDERS.get(short_name(name))
    ep = provider.ep if provider else name
    installed = installed_providers()
    if ep in installed:
        return ep
    if provider is None and not name.endswith("ExecutionProvider"):
        raise ProviderError(
            f"provider {name!r} is unknown; expected auto, {', '.join(PROVIDERS)}, or ONNX "
            "Runtime's name of a provider."
        )
    hint = f"run `{provider.install}`." if provider else "install the package that brings it."
    raise ProviderError(
        f"{ep} is not in this ONNX Runtime, which has {', '.join(installed)}; {hint}"
    )
