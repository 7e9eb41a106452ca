"""ONNX Runtime's execution providers: their names, what brings them, what is set, what is there."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Final

from fastvlm_onnx.errors import ProviderError
from fastvlm_onnx.telemetry import disable_telemetry

ProviderOptions = Mapping[str, str]

ENOUGH: Final = 300  # characters of somebody else's message
# Before it, attention on the CPU cannot append more than one position to a cache that is not empty.
OLDEST_ONNXRUNTIME: Final = (1, 20)
CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
COREML: Final = "CoreMLExecutionProvider"


@dataclass(frozen=True)
class Provider:
    """One of ONNX Runtime's execution providers.

    Attributes:
        ep: ONNX Runtime's name.
        install: what brings it.
        precisions: variants whose graphs it takes, the best first; any when empty.
        options: what is set unless the caller sets it.
        memory: where its tensors live, as ONNX Runtime calls it.
    """

    ep: str
    install: str
    precisions: tuple[str, ...] = ()
    options: ProviderOptions = field(default_factory=dict)
    memory: str = "cpu"


INSTEAD: Final = "pip uninstall onnxruntime && pip install"
PROVIDERS: Final[Mapping[str, Provider]] = {
    "cpu": Provider(
        CPU,
        'pip install "fastvlm-onnx[cpu]"',
        ("fast", "int8", "int4", "fp32", "fp16", "int4_cuda", "coreml"),
    ),
    "cuda": Provider(
        CUDA,
        'pip uninstall onnxruntime && pip install "fastvlm-onnx[cuda]"',
        ("bf16", "fp16", "int4_cuda"),
        {
            # The default doubles what it takes from the card each time.
            "arena_extend_strategy": "kSameAsRequested",
            # The default tries every algorithm of every convolution before the first answer.
            "cudnn_conv_algo_search": "HEURISTIC",
            # Sums of squares in float32: in float16 they overflow, and the row is silently zero.
            "enable_skip_layer_norm_strict_mode": "1",
        },
        memory="cuda",
    ),
    "tensorrt": Provider(
        "TensorrtExecutionProvider",
        'pip install "fastvlm-onnx[cuda]" tensorrt',
        ("fp16", "fp32"),
    ),
    "coreml": Provider(
        COREML,
        'pip install "fastvlm-onnx[cpu]" on macOS',
        ("coreml",),
        {
            # The default, NeuralNetwork, takes no float16.
            "ModelFormat": "MLProgram",
            # With ALL, float16 programs were slower than on the CPU (docs/providers.md).
            "MLComputeUnits": "CPUAndNeuralEngine",
            "RequireStaticInputShapes": "1",
        },
    ),
    "openvino": Provider(
        "OpenVINOExecutionProvider",
        f"{INSTEAD} onnxruntime-openvino",
        ("fp32", "fp16"),
        {"device_type": "CPU"},
    ),
    "directml": Provider(
        "DmlExecutionProvider", f"{INSTEAD} onnxruntime-directml", ("fp16", "fp32")
    ),
    "migraphx": Provider(
        "MIGraphXExecutionProvider", f"{INSTEAD} onnxruntime-migraphx", ("fp16", "fp32")
    ),
    "mlx": Provider(
        "MLXExecutionProvider", "pip install onnxruntime-ep-mlx", ("fp16", "int4_cuda", "int4")
    ),
    "qnn": Provider("QNNExecutionProvider", f"{INSTEAD} onnxruntime-qnn", ("fp16", "fp32")),
    "webgpu": Provider(
        "WebGpuExecutionProvider", f"{INSTEAD} onnxruntime-webgpu", ("fp16", "fp32")
    ),
}
_SHORT_NAMES: Final = {provider.ep: name for name, provider in PROVIDERS.items()}


def short_name(ep: str) -> str:
    """`cuda` for CUDAExecutionProvider; the name itself for one that has no short one."""
    return _SHORT_NAMES.get(ep, ep)


def import_onnxruntime() -> ModuleType:
    """The onnxruntime package; an extra, because its cpu and gpu wheels exclude each other.

    Raises:
        ProviderError: it is not installed, or older than what was tested.
    """
    disable_telemetry()
    try:
        import onnxruntime
    except ImportError as error:
        raise ProviderError(
            f"ONNX Runtime cannot be imported ({error}); install it with "
            '`pip install "fastvlm-onnx[cpu]"`, or `[cuda]` for NVIDIA.'
        ) from None
    version = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    if version < OLDEST_ONNXRUNTIME:
        raise ProviderError(
            f"ONNX Runtime is {onnxruntime.__version__}, expected at least "
            f"{'.'.join(map(str, OLDEST_ONNXRUNTIME))}; run `pip install -U onnxruntime`."
        )
    return onnxruntime


@cache
def preload_cuda() -> None:
    """Load CUDA's libraries from the pip packages that hold them, if there are any."""
    ort = import_onnxruntime()
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()


def installed_providers() -> list[str]:
    """ONNX Runtime's names of all providers in this build, and of registered plugins' devices."""
    ort = import_onnxruntime()
    names = list(ort.get_available_providers())
    if hasattr(ort, "get_ep_devices"):
        names += [device.ep_name for device in ort.get_ep_devices()]
    return list(dict.fromkeys(names))


def register_library(name: str, path: str | Path) -> None:
    """Make a plugin provider known to ONNX Runtime.

    Raises:
        ProviderError: the file is no such library, or this ONNX Runtime takes none.
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
    # ONNX Runtime does not say which it has, and refuses one that comes twice.
    return set()


def in_one_line(error: BaseException) -> str:
    """What an exception says; of a long one the end, where ONNX Runtime has the reason."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= ENOUGH else f"... {text[-ENOUGH:]}"


def resolve(name: str) -> str:
    """ONNX Runtime's name of a provider, which must be installed.

    Raises:
        ProviderError: the name is unknown, or the provider is not there.
    """
    provider = PROVIDERS.get(name.lower()) or PROVIDERS.get(short_name(name))
    ep = provider.ep if provider else name
    installed = installed_providers()
    if ep in installed:
        return ep
    if provider is None and not name.endswith("ExecutionProvider"):
        raise ProviderError(
            f"provider {name!r} is unknown; expected auto, {', '.join(PROVIDERS)}, or ONNX "
            "Runtime's own name of one."
        )
    hint = f"run `{provider.install}`." if provider else "install the package that brings it."
    raise ProviderError(
        f"{ep} is not in this ONNX Runtime, which has {', '.join(installed)}; {hint}"
    )
