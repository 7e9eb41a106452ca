"""Which variant and provider to take on which processor; docs/providers.md has the same table."""

import platform
import sys
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from fastvlm_onnx.runtime.ort.hardware import processor_features
from fastvlm_onnx.runtime.ort.providers import COREML, CUDA, OPENVINO
from fastvlm_onnx.runtime.ort.saturation import int8_products_saturate


@dataclass(frozen=True)
class Advice:
    """One row of the table.

    Attributes:
        machine: the processor or card, and the wheel that is installed.
        take: the variant and the provider.
        reason: why.
    """

    machine: str
    take: str
    reason: str


ON_CUDA: Final = Advice(
    "NVIDIA card, onnxruntime-gpu",
    "`bf16` of `--target cuda`, provider auto",
    "16-bit kernels for every operator; speed not measured",
)
ON_COREML: Final = Advice(
    "macOS",
    "`coreml` of `--target coreml`, provider auto",
    "the Neural Engine takes the vision encoder; not run",
)
WITH_OPENVINO: Final = Advice(
    "x86-64 with AMX, OpenVINO's plugin",
    "`fast` of `--target openvino`, or `fast` beside `fp32`, provider auto",
    "OpenVINO runs the vision encoder and the CPU provider the decoder: the soonest first token",
)
WITHOUT_OPENVINO: Final = Advice(
    "x86-64 with AMX, no plugin",
    '`fast`, provider auto; `pip install "fastvlm-onnx[cpu,openvino]"` brings the plugin',
    "int8 products are exact, and the plugin's vision encoder is sooner",
)
VNNI_OPENVINO: Final = Advice(
    "x86-64 with VNNI, OpenVINO's plugin or wheel",
    "`fast` of `--target openvino`, provider auto",
    "OpenVINO's int8 kernels keep tensors in 8 bits between the products: closer to fp32, and as "
    "soon on a Zen 4",
)
VNNI: Final = Advice(
    "x86-64 with VNNI, no OpenVINO",
    "`fast`, provider cpu",
    "int8 products are exact and fast; on Intel's, the plugin may be sooner",
)
AVX2: Final = Advice(
    "x86-64 with AVX2 and without VNNI",
    "`fast`, provider cpu",
    "int8 products saturate there, in OpenVINO too: the CPU provider makes them exact",
)
ARM: Final = Advice(
    "arm64",
    "`fast`, provider cpu",
    "int8 products are exact in emulation; speed not measured",
)
OTHER: Final = Advice(
    "other processors",
    "`fast`, provider cpu",
    "not run",
)
TABLE: Final = (
    ON_CUDA,
    ON_COREML,
    WITH_OPENVINO,
    WITHOUT_OPENVINO,
    VNNI_OPENVINO,
    VNNI,
    AVX2,
    ARM,
    OTHER,
)


def advice(usable: Collection[str]) -> Advice:
    """Return the row for this machine.

    Args:
        usable: ONNX Runtime's names of the providers that can be had.
    """
    if CUDA in usable:
        return ON_CUDA
    if COREML in usable and sys.platform == "darwin":
        return ON_COREML
    machine = platform.machine().lower()
    if machine in ("arm64", "aarch64"):
        return ARM
    if machine not in ("x86_64", "amd64"):
        return OTHER
    if "amx_int8" in processor_features():
        return WITH_OPENVINO if OPENVINO in usable else WITHOUT_OPENVINO
    if int8_products_saturate():
        return AVX2
    return VNNI_OPENVINO if OPENVINO in usable else VNNI
