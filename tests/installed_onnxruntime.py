"""The variants that the installed ONNX Runtime runs."""

import pytest

from fastvlm_onnx.package import parse_version
from fastvlm_onnx.runtime.ort.providers import import_onnxruntime
from fastvlm_onnx.variants import VARIANTS


def runs(variant: str) -> bool:
    """Whether the installed ONNX Runtime is new enough for a variant."""
    installed = parse_version(import_onnxruntime().__version__)
    return installed >= parse_version(VARIANTS[variant].least_onnxruntime)


def skip_without(variant: str) -> None:
    """Skip the test where the installed ONNX Runtime is too old for a variant."""
    if not runs(variant):
        pytest.skip(f"{variant} needs ONNX Runtime {VARIANTS[variant].least_onnxruntime}")
