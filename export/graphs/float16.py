"""A graph in float16 with float32 at its borders."""

import onnx_ir as ir

from fastvlm_onnx.export.tensors.external_data import StoredTensor

HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT


def to_half(model: ir.Model) -> ir.Model:
    """Store every weight of a float32 graph in float16 and compute in it, in place.

    Inputs are cast on their way in and outputs on their way out. Only for graphs whose values fit:
    predict.py runs the vision encoder in float16 too.
    """
    graph = model.graph
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.dtype != FLOAT:
            continue
        if isinstance(tensor, StoredTensor):
            value.const_value = tensor.cast(HALF)
        else:
            value.const_value = ir.tensor(tensor.numpy().astype(HALF.numpy()))
    for value in graph.inputs:
        cast = ir.node("Cast", [value], {"to": HALF})
        cast.outputs[0].name = f"{value.name}_half"
        users = [use for use in value.uses() if use.node is not cast]
        for node, index in users:
            node.replace_input_with(index, cast.outputs[0])
        graph.insert_before(graph[0], cast)
    for i, value in enumerate(list(graph.outputs)):
        name, shape = value.name, value.shape
        value.name, value.type, value.shape = f"{name}_half", None, None
        cast = ir.node("Cast", [value], {"to": FLOAT})
        cast.outputs[0].name, cast.outputs[0].shape = name, shape
        cast.outputs[0].type = ir.TensorType(FLOAT)
        graph.append(cast)
        graph.outputs[i] = cast.outputs[0]
    return model
