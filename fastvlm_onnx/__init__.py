"""Run Apple's FastVLM with numpy and ONNX Runtime, without PyTorch.

    import fastvlm_onnx
    model = fastvlm_onnx.load("demo-onnx")
    print(model.generate("photo.jpg", "Describe the image.").text)

Importing this package imports neither numpy nor onnxruntime; the first use of `load` does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastvlm_onnx.errors import (
    BusyError,
    CheckpointError,
    ClosedError,
    FastVLMError,
    InputError,
    NotSeenError,
    PackageError,
    PromptTooLongError,
    ProviderError,
    UnsupportedError,
)
from fastvlm_onnx.version import __version__

if TYPE_CHECKING:
    from fastvlm_onnx.runtime.answering.chat import Chat
    from fastvlm_onnx.runtime.answering.results import Generation, Piece, Timings
    from fastvlm_onnx.runtime.answering.see import SeenImage
    from fastvlm_onnx.runtime.engine.options import GenerationConfig, GenerationOptions
    from fastvlm_onnx.runtime.loading import load
    from fastvlm_onnx.runtime.model import FastVLM
    from fastvlm_onnx.runtime.ort.providers import ProviderOptions
    from fastvlm_onnx.runtime.serving.request import Request
    from fastvlm_onnx.runtime.serving.running_answer import RunningAnswer
    from fastvlm_onnx.runtime.serving.scheduler import Scheduler
    from fastvlm_onnx.runtime.serving.stats import SchedulerStats
    from fastvlm_onnx.runtime.vision.image_encoder import ImageFeatures

__all__ = [
    "BusyError",
    "Chat",
    "CheckpointError",
    "ClosedError",
    "FastVLM",
    "FastVLMError",
    "Generation",
    "GenerationConfig",
    "GenerationOptions",
    "ImageFeatures",
    "InputError",
    "NotSeenError",
    "PackageError",
    "Piece",
    "PromptTooLongError",
    "ProviderError",
    "ProviderOptions",
    "Request",
    "RunningAnswer",
    "Scheduler",
    "SchedulerStats",
    "SeenImage",
    "Timings",
    "UnsupportedError",
    "__version__",
    "load",
]

_LAZY = {
    "Chat": "fastvlm_onnx.runtime.answering.chat",
    "GenerationConfig": "fastvlm_onnx.runtime.engine.options",
    "GenerationOptions": "fastvlm_onnx.runtime.engine.options",
    "ImageFeatures": "fastvlm_onnx.runtime.vision.image_encoder",
    "ProviderOptions": "fastvlm_onnx.runtime.ort.providers",
    "Request": "fastvlm_onnx.runtime.serving.request",
    "RunningAnswer": "fastvlm_onnx.runtime.serving.running_answer",
    "Scheduler": "fastvlm_onnx.runtime.serving.scheduler",
    "SchedulerStats": "fastvlm_onnx.runtime.serving.stats",
    "SeenImage": "fastvlm_onnx.runtime.answering.see",
    "FastVLM": "fastvlm_onnx.runtime.model",
    "load": "fastvlm_onnx.runtime.loading",
    "Generation": "fastvlm_onnx.runtime.answering.results",
    "Piece": "fastvlm_onnx.runtime.answering.results",
    "Timings": "fastvlm_onnx.runtime.answering.results",
}


_RENAMED = {"Options": "GenerationOptions"}


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        from fastvlm_onnx.deprecation import warn_renamed

        warn_renamed(f"fastvlm_onnx.{name}", _RENAMED[name])
        name = _RENAMED[name]
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
