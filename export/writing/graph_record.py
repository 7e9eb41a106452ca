"""Read a graph's record for the manifest off the written graph, so that it cannot disagree."""

from collections.abc import Iterator
from typing import Final

import onnx_ir as ir

from fastvlm_onnx.names import is_past
from fastvlm_onnx.package import Graph

# Operators of the graphs that multiply uint8 activations by int8 weights. QuantizeLinear is of the
# QDQ form, whose products have the names of float32 ones.
INT8_PRODUCTS: Final = ("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QuantizeLinear")
# Measured: older versions refuse attention with a sink, or MatMulNBits with 8 bits.
NUM_INPUTS_WITH_SINK: Final = 12
LEAST_ONNXRUNTIME_SINK: Final = "1.23"
LEAST_ONNXRUNTIME_8_BITS: Final = "1.22"
LEAST_ONNXRUNTIME: Final = "1.20"
DTYPES: Final = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
}


def describe_graph(model: ir.Model) -> Graph:
    """Return a graph's record.

    Args:
        model: the graph; its weights are references to the files that hold them.
    """
    nodes = list(model.graph.all_nodes())
    tensors = (value.const_value for _, value in initializers(model))
    files = {str(t.location) for t in tensors if isinstance(t, ir.ExternalTensor)}
    opsets = {domain or "ai.onnx": version for domain, version in model.opset_imports.items()}
    caches = [value.dtype for value in model.graph.inputs if is_past(str(value.name))]
    return Graph(
        weights=sorted(files),
        opsets=opsets,
        onnxruntime=_least_onnxruntime(nodes),
        int8_products=any(node.op_type in INT8_PRODUCTS for node in nodes),
        cache_dtype=DTYPES[caches[0]] if caches and caches[0] else None,
    )


def _least_onnxruntime(nodes: list[ir.Node]) -> str:
    if any(
        node.op_type == "GroupQueryAttention" and len(node.inputs) >= NUM_INPUTS_WITH_SINK
        for node in nodes
    ):
        return LEAST_ONNXRUNTIME_SINK
    has_8_bits = any(
        node.op_type == "MatMulNBits" and node.attributes["bits"].as_int() == 8 for node in nodes
    )
    return LEAST_ONNXRUNTIME_8_BITS if has_8_bits else LEAST_ONNXRUNTIME


def initializers(model: ir.Model) -> Iterator[tuple[str, ir.Value]]:
    """Yield a model's initializers by name, those of subgraphs included."""
    for graph in model.graphs():
        yield from graph.initializers.items()
