"""Which execution provider runs the graphs, and ONNX Runtime itself."""

from types import ModuleType
from typing import Final

from fastvlm_onnx.errors import ProviderError

PROVIDERS: Final = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
}
OLDEST_ONNXRUNTIME: Final = (1, 18)


def import_onnxruntime() -> ModuleType:
    """The onnxruntime package; an extra, because its cpu and gpu wheels exclude each other.

    Raises:
        ProviderError: it is not installed, or older than what was tested.
    """
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


def resolve_provider(provider: str) -> str:
    """ONNX Runtime's name of a provider, which must be in the installed build.

    `auto` is the CPU: the fp32 graphs run nowhere else as a whole.

    Raises:
        ProviderError: the name is unknown, or the build lacks the provider.
    """
    name = PROVIDERS["cpu"] if provider == "auto" else PROVIDERS.get(provider)
    if name is None:
        raise ProviderError(
            f"provider {provider!r} is unknown; expected auto, {', '.join(PROVIDERS)}."
        )
    # Asked for a provider it lacks, ONNX Runtime only warns and runs on the CPU.
    available = import_onnxruntime().get_available_providers()
    if name not in available:
        hint = ' Run `pip install "fastvlm-onnx[cuda]"`.' if provider == "cuda" else ""
        raise ProviderError(
            f"{name} is not in this ONNX Runtime, which has {', '.join(available)}.{hint}"
        )
    return name
