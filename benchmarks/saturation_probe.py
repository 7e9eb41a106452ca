"""Write runtime/ort/saturation_probe.onnx, the graph that shows how a processor adds int8 products.

    python benchmarks/saturation_probe.py

uint8 activations of 255 times int8 weights of 127: two such products are 64,770, beyond the 32,767
that a processor without VNNI stops at when it adds them in 16 bits.
"""

from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

PROBE: Final = Path(__file__).resolve().parent.parent / "runtime/ort/saturation_probe.onnx"
ROWS, INNER, COLUMNS = 4, 64, 32


def build_probe() -> onnx.ModelProto:
    """a uint8 [4, 64] -> y int32 [4, 32], whose right values are all 64 * 127 * a."""
    weights = np.full((INNER, COLUMNS), 127, np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "weight"], ["y"])],
        "saturation_probe",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [ROWS, INNER])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [ROWS, COLUMNS])],
        [numpy_helper.from_array(weights, "weight")],
    )
    return helper.make_model(
        graph,
        producer_name="fastvlm-onnx",
        ir_version=10,
        opset_imports=[helper.make_opsetid("", 21)],
    )


if __name__ == "__main__":
    PROBE.write_bytes(build_probe().SerializeToString())
    print(f"{PROBE.name}: {PROBE.stat().st_size:,} bytes")
