"""Check every node of a graph against the conditions of ONNX Runtime's CoreML provider.

The provider needs fixed shapes and standard operators. A node that it refuses runs on the CPU, and
ONNX Runtime does not report that. Whether Core ML computes the accepted nodes correctly can be
tested on a Mac only.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx
from onnx import defs, helper, shape_inference

from fastvlm_onnx.export.verification.coreml_operators import Node, Tensor, refusal
from fastvlm_onnx.package import read_manifest

# Larger initializers are weights. Shape inference does not read their values, so these are dropped.
SMALL_BYTES: Final = 1024


@dataclass(frozen=True)
class Coverage:
    """The number of a graph's nodes that CoreML would run.

    Attributes:
        file: the graph's file name in the package.
        nodes: the number of nodes in the graph.
        refused: the number of refused nodes for each operator and reason. When it is empty, CoreML
            runs the whole graph as one part.
    """

    file: str
    nodes: int
    refused: Mapping[str, int]

    @property
    def taken(self) -> int:
        """The number of nodes that CoreML would run."""
        return self.nodes - sum(self.refused.values())


def check_package(folder: Path) -> list[Coverage]:
    """Check the vision encoders and projectors of all variants.

    Args:
        folder: an exported package.

    Raises:
        PackageError: the folder is no package.
    """
    variants = read_manifest(folder).variants.values()
    files = [f for v in variants for f in (*v.vision_encoder.values(), v.projector)]
    return [check_graph(folder / file) for file in dict.fromkeys(files)]


def check_graph(path: Path) -> Coverage:
    """Check every node of one graph file."""
    model = onnx.load(path, load_external_data=False)
    for initializer in model.graph.initializer:
        if len(initializer.raw_data) > SMALL_BYTES:
            initializer.ClearField("raw_data")
    model = shape_inference.infer_shapes(model, data_prop=True)
    refused: Counter[str] = Counter()
    for node in _nodes(model):
        if reason := refusal(node):
            refused[f"{node.op_type}: {reason}"] += 1
    return Coverage(path.name, len(model.graph.node), dict(refused.most_common()))


# --- reading -------------------------------------------------------------------------------------


def _nodes(model: onnx.ModelProto) -> Iterator[Node]:
    graph = model.graph
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    graph_inputs = {value.name for value in graph.input}
    tensors = {
        value.name: _read_tensor(value)
        for value in (*graph.input, *graph.value_info, *graph.output)
    } | {
        tensor.name: Tensor(
            onnx.TensorProto.DataType.Name(tensor.data_type),
            tuple(tensor.dims),
            tensor.name not in graph_inputs,
        )
        for tensor in graph.initializer
    }
    unknown = Tensor(None, None)

    def tensor_of(name: str) -> Tensor | None:
        return tensors.get(name, unknown) if name else None

    for node in graph.node:
        # onnx has no schemas of com.microsoft's operators, whose version is always 1.
        known = defs.has(node.op_type, node.domain)
        yield Node(
            op_type=node.op_type,
            since_version=defs.get_schema(
                node.op_type, opsets[node.domain], node.domain
            ).since_version
            if known
            else 1,
            attributes={a.name: _value(a) for a in node.attribute},
            inputs=[tensor_of(name) for name in node.input],
            outputs=[tensor_of(name) for name in node.output],
        )


def _read_tensor(value: onnx.ValueInfoProto) -> Tensor:
    kind = value.type.tensor_type
    shape = (
        tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in kind.shape.dim)
        if kind.HasField("shape")
        else None
    )
    return Tensor(onnx.TensorProto.DataType.Name(kind.elem_type), shape)


def _value(attribute: onnx.AttributeProto) -> object:
    value = helper.get_attribute_value(attribute)
    return value.decode() if isinstance(value, bytes) else value
