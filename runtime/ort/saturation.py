"""Find out whether this processor's int8 products are exact, and make them exact where not.

On x86 processors with AVX2 and without VNNI, ONNX Runtime's product of uint8 activations and int8
weights adds two products in 16 bits and saturates. Given `session.x64quantprecision`, ONNX Runtime
rewrites int8 weights as uint8 when it opens a graph, which is exact. The entry acts on every x86
processor and makes the products slow where they were exact before, so it is set only where a probe
saturates.
"""

import os
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from fastvlm_onnx.errors import InputError
from fastvlm_onnx.runtime.ort.providers import import_onnxruntime

# Replaces the probe's verdict, for tests: 1 or 0.
VERDICT_VARIABLE: Final = "FASTVLM_ONNX_INT8_SATURATES"
EXACT_PRODUCTS: Final = ("session.x64quantprecision", "1")
PROBE_FILE: Final = "saturation_probe.onnx"
# benchmarks/saturation_probe.py writes the graph: 64 products of an activation and a weight of 127.
PROBE_SHAPE: Final = (4, 64)
PROBE_WEIGHT: Final = 127


def int8_weights_of(has_int8_products: bool) -> str | None:
    """Return how this processor reads a graph's int8 weights.

    Args:
        has_int8_products: the graph multiplies uint8 activations by int8 weights.

    Returns:
        "int8" where the products read the weights as they are stored, "uint8" where ONNX Runtime
        has to rewrite the weights, None for a graph without such products.
    """
    if not has_int8_products:
        return None
    return "uint8" if int8_products_saturate() else "int8"


def int8_products_saturate() -> bool:
    """Return whether the CPU provider's uint8 x int8 products saturate on this processor.

    Raises:
        InputError: FASTVLM_ONNX_INT8_SATURATES is neither 0 nor 1.
    """
    forced = os.environ.get(VERDICT_VARIABLE, "")
    if forced not in ("", "0", "1"):
        raise InputError(
            f"{VERDICT_VARIABLE} is {forced!r}; expected 0 or 1, or no such variable for a probe."
        )
    return forced == "1" if forced else _probe()


@cache
def _probe() -> bool:
    """Multiply the largest values once, which takes about 4 ms, and check the sums."""
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    graph = Path(__file__).with_name(PROBE_FILE).read_bytes()
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    products: Any = session.run(None, {"a": np.full(PROBE_SHAPE, 255, np.uint8)})[0]
    return bool((products != PROBE_SHAPE[1] * PROBE_WEIGHT * 255).any())
