"""What ONNX Runtime's CoreML provider takes, in MLProgram form: operators and their conditions.

Read from the provider's operator table of ONNX Runtime 1.31. A node that breaks a condition is left
to the CPU, and cuts the graph in parts that pass values back and forth.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

# The provider knows operators up to this version of themselves.
NEWEST: Final = 27
LARGEST_RANK: Final = 5
LARGEST_CONV_AXIS: Final = 16_384
FLOATS: Final = ("FLOAT", "FLOAT16")
NUMBERS: Final = (*FLOATS, "INT64")


@dataclass(frozen=True)
class Tensor:
    """One input or output of a node.

    Attributes:
        dtype: ONNX's name of it; None where inference found none.
        shape: numbers, and names where an axis is not fixed; None where its rank is unknown.
        is_constant: an initializer that no caller can replace.
    """

    dtype: str | None
    shape: tuple[int | str, ...] | None
    is_constant: bool = False

    @property
    def rank(self) -> int:
        return len(self.shape or ())


@dataclass(frozen=True)
class Node:
    """A node as the conditions see it; an input or output that is left out is None.

    Attributes:
        since: the opset in which this version of the operator came.
    """

    op_type: str
    since: int
    attributes: Mapping[str, Any]
    inputs: Sequence[Tensor | None]
    outputs: Sequence[Tensor | None]

    def has(self, **defaults: Any) -> bool:
        """Whether every attribute has this value, or is left out."""
        return all(self.attributes.get(name, value) == value for name, value in defaults.items())


Condition = Callable[[Node], str | None]
"""Says in words what a node breaks."""


@dataclass(frozen=True)
class Operator:
    """What makes a node of one operator acceptable.

    Attributes:
        since: the oldest version of the operator.
        dtypes: of the first input.
        ranks: of the first input; any up to LARGEST_RANK when empty.
        constants: inputs that must be initializers.
        condition: what else must hold.
    """

    since: int = 1
    dtypes: tuple[str, ...] = NUMBERS
    ranks: tuple[int, ...] = ()
    constants: tuple[int, ...] = ()
    condition: Condition = lambda _: None


def refusal(node: Node) -> str | None:
    """Why CoreML does not take a node; None when it does."""
    # The domain does not count, but com.microsoft's operators are of version 1, and many of ONNX's
    # own must be newer.
    operator = OPERATORS.get(node.op_type)
    if operator is None:
        return "not an operator of CoreML's"
    if not operator.since <= node.since <= NEWEST:
        return f"version {node.since}, expected {operator.since} to {NEWEST}"
    for i, tensor in enumerate(node.inputs):
        if tensor is None:
            continue
        if tensor.shape is None:
            return f"the shape of input {i} is unknown"
        for axis in tensor.shape:
            if not isinstance(axis, int):
                return f"{axis or 'an axis'} of input {i} is not fixed"
            if axis == 0:
                return f"input {i} is empty"
        if i in operator.constants and not tensor.is_constant:
            return f"input {i} is not constant"
    for tensor in (*node.inputs, *node.outputs):
        if tensor is not None and tensor.rank > LARGEST_RANK:
            return f"rank {tensor.rank}, at most {LARGEST_RANK}"
    first = node.inputs[0]
    if first is not None and first.dtype not in operator.dtypes:
        return f"input 0 is {first.dtype}, expected {' or '.join(operator.dtypes)}"
    if first is not None and operator.ranks and first.rank not in operator.ranks:
        return f"rank {first.rank}, expected {' or '.join(map(str, operator.ranks))}"
    return operator.condition(node)


# --- conditions ----------------------------------------------------------------------------------


def _attributes(**expected: Any) -> Condition:
    return lambda node: None if node.has(**expected) else f"expected {_in_words(expected)}"


def _in_words(attributes: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in attributes.items())


def _one_output(node: Node) -> str | None:
    return None if len([t for t in node.outputs if t]) == 1 else "more than one output"


def _one_dtype(node: Node) -> str | None:
    dtypes = {tensor.dtype for tensor in node.inputs if tensor is not None}
    return None if len(dtypes) == 1 else f"inputs are of {' and '.join(sorted(map(str, dtypes)))}"


def _each(*conditions: Condition) -> Condition:
    def first_broken(node: Node) -> str | None:
        return next(filter(None, (condition(node) for condition in conditions)), None)

    return first_broken


def _conv(node: Node) -> str | None:
    weight = node.inputs[1]
    if weight is None or weight.rank not in (3, 4):
        return "the kernel is not of one or two axes"
    for tensor in (*node.inputs[:2], *node.outputs):
        if any(
            isinstance(n, int) and n > LARGEST_CONV_AXIS for n in (tensor and tensor.shape) or ()
        ):
            return f"an axis is longer than {LARGEST_CONV_AXIS}"
    if "SAME" in str(node.attributes.get("auto_pad")):
        return "pads are not given as numbers"
    return None


def _pool(node: Node) -> str | None:
    if any(n != 1 for n in node.attributes.get("dilations", ())):
        return "is dilated"
    return _each(_attributes(ceil_mode=0, storage_order=0), _one_output)(node)


def _matrices(node: Node) -> str | None:
    return "an input has one axis" if any(t and t.rank < 2 for t in node.inputs) else None


def _pad(node: Node) -> str | None:
    mode = node.attributes.get("mode", "constant")
    return None if mode in ("constant", "reflect") else f"mode is {mode}"


def _resize(node: Node) -> str | None:
    mode = node.attributes.get("mode", "nearest")
    if mode not in ("nearest", "linear"):
        return f"mode is {mode}"
    return _attributes(antialias=0, exclude_outside=0, keep_aspect_ratio_policy="stretch")(node)


def _shape(node: Node) -> str | None:
    return None if node.has(start=0) and "end" not in node.attributes else "has start or end"


def _split(node: Node) -> str | None:
    return None if len(node.outputs) > 1 else "has one output"


def _where(node: Node) -> str | None:
    branches = {tensor.dtype for tensor in node.inputs[1:] if tensor is not None}
    return None if branches <= set(FLOATS) else f"inputs are of {' and '.join(map(str, branches))}"


# --- the table -----------------------------------------------------------------------------------


def _alike(names: str, operator: Operator) -> dict[str, Operator]:
    return dict.fromkeys(names.split(), operator)


OPERATORS: Final[Mapping[str, Operator]] = {
    # one value at a time
    **_alike("Sigmoid Tanh Relu LeakyRelu Gelu Elu", Operator(6)),
    **_alike("Softplus Erf Reciprocal Round Sqrt Exp Sin Cos Ceil Identity QuickGelu", Operator()),
    **_alike("Add Sub Mul Div Max", Operator(7)),
    "Pow": Operator(7, FLOATS, condition=_one_dtype),
    "PRelu": Operator(6, ranks=(3, 4), constants=(1,)),
    "HardSigmoid": Operator(6, FLOATS),
    "Clip": Operator(constants=(1, 2)),
    "And": Operator(dtypes=("BOOL",)),
    "Where": Operator(dtypes=("BOOL",), condition=_where),
    "Cast": Operator(dtypes=(*NUMBERS, "INT32", "BOOL")),
    # convolutions and products
    "Conv": Operator(constants=(2,), condition=_conv),
    "FusedConv": Operator(dtypes=FLOATS, constants=(2,), condition=_conv),
    "ConvTranspose": Operator(constants=(1, 2), condition=_conv),
    "Gemm": Operator(constants=(1, 2), condition=_attributes(transA=0, alpha=1.0, beta=1.0)),
    "MatMul": Operator(condition=_matrices),
    # sums over axes
    **_alike("AveragePool MaxPool", Operator(ranks=(4,), condition=_pool)),
    **_alike("GlobalAveragePool GlobalMaxPool", Operator(ranks=(4,))),
    **_alike("ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd", Operator(constants=(1,))),
    "ArgMax": Operator(condition=_attributes(select_last_index=0)),
    "Softmax": Operator(),
    # norms
    "BatchNormalization": Operator(
        7,
        ranks=(4,),
        constants=(1, 2, 3, 4),
        condition=_each(_attributes(training_mode=0), _one_output),
    ),
    "LayerNormalization": Operator(
        1,
        FLOATS,
        constants=(1, 2),
        condition=_each(_attributes(stash_type=1), _one_output, _one_dtype),
    ),
    "GroupNormalization": Operator(
        1, FLOATS, (2, 3, 4), (1, 2), _each(_attributes(stash_type=1), _one_dtype)
    ),
    "InstanceNormalization": Operator(1, FLOATS, constants=(1, 2)),
    # shapes
    "Reshape": Operator(5, constants=(1,), condition=_attributes(allowzero=0)),
    "Slice": Operator(10, constants=(1, 2, 3, 4)),
    "Split": Operator(constants=(1,), condition=_split),
    "Squeeze": Operator(constants=(1,)),
    "Unsqueeze": Operator(constants=(1,)),
    "Pad": Operator(11, constants=(1, 2, 3), condition=_pad),
    "Resize": Operator(11, constants=(2, 3), condition=_resize),
    "GatherND": Operator(constants=(1,), condition=_attributes(batch_dims=0)),
    "GridSample": Operator(ranks=(4,)),
    "Shape": Operator(condition=_shape),
    **_alike("Concat DepthToSpace Gather Tile Transpose", Operator()),
}
