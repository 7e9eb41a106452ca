"""A graph whose symbolic axes are replaced by numbers."""

from collections.abc import Mapping

import onnx_ir as ir


def fix_axes(model: ir.Model, sizes: Mapping[str, int]) -> ir.Model:
    """Replace symbolic axes by numbers, in place.

    Args:
        model: the graph to change.
        sizes: the number for each axis name; an axis that is not named here stays symbolic.

    Returns:
        The same model.
    """
    graph = model.graph
    values = [*graph.inputs, *(output for node in graph for output in node.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape([sizes.get(_name(axis), axis) for axis in value.shape])
    return model


def _name(axis: int | ir.SymbolicDim) -> str:
    return str(axis.value) if isinstance(axis, ir.SymbolicDim) else ""
