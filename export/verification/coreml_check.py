"""Graphs for CoreML, and a check of every node against what its provider takes.

The provider wants fixed shapes and plain operators; what it does not take, it leaves to the CPU
without a word. Whether Core ML then computes what it took rightly, only a Mac can tell.
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

# Larger initializers are weights: only their types and shapes count.
SMALL_BYTES: Final = 1024


@dataclass(frozen=True)
class Share:
    """How much of one graph CoreML would take.

    Attributes:
        file: its name in the package.
        nodes: how many it has.
        refused: a reason, with the operator it is about, and how many nodes it holds for. Without
            any, the whole graph is one part.
    """

    file: str
    nodes: int
    refused: Mapping[str, int]

    @property
    def taken(self) -> int:
        return self.nodes - sum(self.refused.values())


def check_package(folder: Path) -> list[Share]:
    """Hold the vision encoders and projectors of all variants against CoreML's operators.

    Raises:
        PackageError: the folder is no package.
    """
    variants = read_manifest(folder).variants.values()
    files = [f for v in variants for f in (*v.vision_encoder.values(), v.projector)]
    return [check_graph(folder / file) for file in dict.fromkeys(files)]


def check_graph(path: Path) -> Share:
    """Hold every node of one graph against CoreML's operators."""
    model = onnx.load(path, load_external_data=False)
    for initializer in model.graph.initializer:
        if len(initializer.raw_data) > SMALL_BYTES:
            initializer.ClearField("raw_data")
    model = shape_inference.infer_shapes(model, data_prop=True)
    refused: Counter[str] = Counter()
    for node in _nodes(model):
        if reason := refusal(node):
            refused[f"{node.op_type}: {reason}"] += 1
    return Share(path.name, len(model.graph.node), dict(refused.most_common()))


# --- reading -------------------------------------------------------------------------------------


def _nodes(model: onnx.ModelProto) -> Iterator[Node]:
    graph = model.graph
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    fed = {value.name for value in graph.input}
    tensors = {
        value.name: _described(value) for value in (*graph.input, *graph.value_info, *graph.output)
    } | {
        tensor.name: Tensor(
            onnx.TensorProto.DataType.Name(tensor.data_type),
            tuple(tensor.dims),
            tensor.name not in fed,
        )
        for tensor in graph.initializer
    }
    unknown = Tensor(None, None)

    def named(name: str) -> Tensor | None:
        return tensors.get(name, unknown) if name else None

    for node in graph.node:
        # Operators that onnx does not know are com.microsoft's, which have one version.
        known = defs.has(node.op_type, node.domain)
        yield Node(
            node.op_type,
            defs.get_schema(node.op_type, opsets[node.domain], node.domain).since_version
            if known
            else 1,
            {a.name: _value(a) for a in node.attribute},
            [named(name) for name in node.input],
            [named(name) for name in node.output],
        )


def _described(value: onnx.ValueInfoProto) -> Tensor:
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
