"""A graph in float16 with float32 at its borders."""

import onnx_ir as ir

from fastvlm_onnx.export.stored import StoredTensor

HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT


def to_half(model: ir.Model) -> ir.Model:
    """Store every weight of a float32 graph in float16 and compute in it, in place.

    Inputs are cast on their way in and outputs on their way out. Only for graphs whose values fit:
    predict.py runs the vision encoder in float16 too.
    """
    graph = model.graph
    for value in graph.initializers.values():
        if isinstance(value.const_value, StoredTensor) and value.dtype == FLOAT:
            value.const_value = value.const_value.cast(HALF)
            value.type = ir.TensorType(HALF)
        elif value.dtype == FLOAT and value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(HALF.numpy()))
            value.type = ir.TensorType(HALF)
    for node in graph:
        for output in node.outputs:
            if output.dtype == FLOAT:
                output.type = ir.TensorType(HALF)
    for value in graph.inputs:
        cast = ir.node("Cast", [value], {"to": HALF})
        cast.outputs[0].name = f"{value.name}_half"
        users = [use for use in value.uses() if use.node is not cast]
        for node, index in users:
            node.replace_input_with(index, cast.outputs[0])
        graph.insert_before(graph[0], cast)
    for i, value in enumerate(list(graph.outputs)):
        name, shape = value.name, value.shape
        value.name, value.type = f"{name}_half", ir.TensorType(HALF)
        cast = ir.node("Cast", [value], {"to": FLOAT})
        cast.outputs[0].name, cast.outputs[0].shape = name, shape
        cast.outputs[0].type = ir.TensorType(FLOAT)
        graph.append(cast)
        graph.outputs[i] = cast.outputs[0]
    return model
