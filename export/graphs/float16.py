"""Conversion of a float32 graph to float16, with float32 inputs and outputs."""

import onnx_ir as ir

from fastvlm_onnx.export.tensors.external_data import StoredTensor

FLOAT16, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT


def convert_to_float16(model: ir.Model) -> ir.Model:
    """Convert weights and arithmetic of a float32 graph to float16, in place.

    A Cast follows each input and precedes each output. All values of the graph must be in the range
    of float16. The vision encoder's are: predict.py runs it in float16 too.

    Args:
        model: a graph whose inputs, outputs and weights are float32.

    Returns:
        The same model.
    """
    graph = model.graph
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.dtype != FLOAT:
            continue
        if isinstance(tensor, StoredTensor):
            value.const_value = tensor.cast(FLOAT16)
        else:
            value.const_value = ir.tensor(tensor.numpy().astype(FLOAT16.numpy()))
    for value in graph.inputs:
        cast = ir.node("Cast", [value], {"to": FLOAT16})
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
