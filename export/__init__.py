"""Export a FastVLM checkpoint to a folder of ONNX graphs, without PyTorch.

    from fastvlm_onnx.export import export_package
    export_package("demo", "demo-onnx")

Importing this package imports no graph library; the first use of a name does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# The repository's folder can be imported as `export`, which would load every module a second time.
if __name__ != "fastvlm_onnx.export":
    raise ImportError("import fastvlm_onnx.export, not export")

if TYPE_CHECKING:
    from fastvlm_onnx.export.checkpoint.reader import Checkpoint
    from fastvlm_onnx.export.pipeline import export_package
    from fastvlm_onnx.export.sources.open_checkpoint import open_checkpoint
    from fastvlm_onnx.export.verification.verify import verify_package

__all__ = ["Checkpoint", "export_package", "open_checkpoint", "verify_package"]

_LAZY = {
    "Checkpoint": "fastvlm_onnx.export.checkpoint.reader",
    "export_package": "fastvlm_onnx.export.pipeline",
    "open_checkpoint": "fastvlm_onnx.export.sources.open_checkpoint",
    "verify_package": "fastvlm_onnx.export.verification.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
