"""The operators that ONNX Runtime's CoreML provider runs as an MLProgram, and their conditions.

Read from the provider's operator table of ONNX Runtime 1.31. A node that breaks a condition runs on
the CPU. It also splits the graph into parts, between which values are copied.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

# The newest version of an operator that the provider accepts.
NEWEST: Final = 27
LARGEST_RANK: Final = 5
LARGEST_CONV_AXIS: Final = 16_384
FLOATS: Final = ("FLOAT", "FLOAT16")
NUMBERS: Final = (*FLOATS, "INT64")


@dataclass(frozen=True)
class Tensor:
    """One input or output of a node.

    Attributes:
        dtype: the dtype's name in ONNX, such as "FLOAT16"; None if it is unknown.
        shape: a number for each fixed axis and a name for each symbolic axis; None if the rank is
            unknown.
        is_constant: whether the tensor is an initializer that is no input of the graph.
    """

    dtype: str | None
    shape: tuple[int | str, ...] | None
    is_constant: bool = False

    @property
    def rank(self) -> int:
        return len(self.shape or ())


@dataclass(frozen=True)
class Node:
    """A node with everything that the conditions read.

    Attributes:
        op_type: the operator's name.
        since_version: the opset that introduced this version of the operator.
        attributes: values by name.
        inputs: one Tensor for each input; None for an omitted input.
        outputs: one Tensor for each output; None for an omitted output.
    """

    op_type: str
    since_version: int
    attributes: Mapping[str, Any]
    inputs: Sequence[Tensor | None]
    outputs: Sequence[Tensor | None]

    def has(self, **defaults: Any) -> bool:
        """Return whether every attribute has the given value or is omitted."""
        return all(self.attributes.get(name, value) == value for name, value in defaults.items())


Condition = Callable[[Node], str | None]
"""Returns the reason why a node is refused, or None if it is accepted."""


@dataclass(frozen=True)
class OperatorConditions:
    """The conditions that a node of one operator must meet.

    Attributes:
        oldest_version: the oldest version of the operator that the provider accepts.
        dtypes: the accepted dtypes of the first input.
        ranks: the accepted ranks of the first input; every rank up to LARGEST_RANK when empty.
        constant_inputs: the indices of inputs that must be initializers.
        condition: a further condition.
    """

    oldest_version: int = 1
    dtypes: tuple[str, ...] = NUMBERS
    ranks: tuple[int, ...] = ()
    constant_inputs: tuple[int, ...] = ()
    condition: Condition = lambda _: None


def refusal(node: Node) -> str | None:
    """Return the reason why CoreML does not run a node, or None if it runs it."""
    # The provider looks operators up by name only, without their domain. com.microsoft's operators
    # have version 1, and many of ONNX's own must be newer.
    operator = COREML_OPERATORS.get(node.op_type)
    if operator is None:
        return "not an operator of CoreML's"
    if not operator.oldest_version <= node.since_version <= NEWEST:
        return f"version {node.since_version}, expected {operator.oldest_version} to {NEWEST}"
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
        if i in operator.constant_inputs and not tensor.is_constant:
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


def _alike(names: str, conditions: OperatorConditions) -> dict[str, OperatorConditions]:
    return dict.fromkeys(names.split(), conditions)


COREML_OPERATORS: Final[Mapping[str, OperatorConditions]] = {
    # elementwise
    **_alike("Sigmoid Tanh Relu LeakyRelu Gelu Elu", OperatorConditions(oldest_version=6)),
    **_alike(
        "Softplus Erf Reciprocal Round Sqrt Exp Sin Cos Ceil Identity QuickGelu",
        OperatorConditions(),
    ),
    **_alike("Add Sub Mul Div Max", OperatorConditions(oldest_version=7)),
    "Pow": OperatorConditions(oldest_version=7, dtypes=FLOATS, condition=_one_dtype),
    "PRelu": OperatorConditions(oldest_version=6, ranks=(3, 4), constant_inputs=(1,)),
    "HardSigmoid": OperatorConditions(oldest_version=6, dtypes=FLOATS),
    "Clip": OperatorConditions(constant_inputs=(1, 2)),
    "And": OperatorConditions(dtypes=("BOOL",)),
    "Where": OperatorConditions(dtypes=("BOOL",), condition=_where),
    "Cast": OperatorConditions(dtypes=(*NUMBERS, "INT32", "BOOL")),
    # convolutions and matrix products
    "Conv": OperatorConditions(constant_inputs=(2,), condition=_conv),
    "FusedConv": OperatorConditions(dtypes=FLOATS, constant_inputs=(2,), condition=_conv),
    "ConvTranspose": OperatorConditions(constant_inputs=(1, 2), condition=_conv),
    "Gemm": OperatorConditions(
        constant_inputs=(1, 2), condition=_attributes(transA=0, alpha=1.0, beta=1.0)
    ),
    "MatMul": OperatorConditions(condition=_matrices),
    # reductions over axes
    **_alike("AveragePool MaxPool", OperatorConditions(ranks=(4,), condition=_pool)),
    **_alike("GlobalAveragePool GlobalMaxPool", OperatorConditions(ranks=(4,))),
    **_alike(
        "ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd",
        OperatorConditions(constant_inputs=(1,)),
    ),
    "ArgMax": OperatorConditions(condition=_attributes(select_last_index=0)),
    "Softmax": OperatorConditions(),
    # normalisations
    "BatchNormalization": OperatorConditions(
        oldest_version=7,
        ranks=(4,),
        constant_inputs=(1, 2, 3, 4),
        condition=_each(_attributes(training_mode=0), _one_output),
    ),
    "LayerNormalization": OperatorConditions(
        dtypes=FLOATS,
        constant_inputs=(1, 2),
        condition=_each(_attributes(stash_type=1), _one_output, _one_dtype),
    ),
    "GroupNormalization": OperatorConditions(
        dtypes=FLOATS,
        ranks=(2, 3, 4),
        constant_inputs=(1, 2),
        condition=_each(_attributes(stash_type=1), _one_dtype),
    ),
    "InstanceNormalization": OperatorConditions(dtypes=FLOATS, constant_inputs=(1, 2)),
    # shapes
    "Reshape": OperatorConditions(
        oldest_version=5, constant_inputs=(1,), condition=_attributes(allowzero=0)
    ),
    "Slice": OperatorConditions(oldest_version=10, constant_inputs=(1, 2, 3, 4)),
    "Split": OperatorConditions(constant_inputs=(1,), condition=_split),
    "Squeeze": OperatorConditions(constant_inputs=(1,)),
    "Unsqueeze": OperatorConditions(constant_inputs=(1,)),
    "Pad": OperatorConditions(oldest_version=11, constant_inputs=(1, 2, 3), condition=_pad),
    "Resize": OperatorConditions(oldest_version=11, constant_inputs=(2, 3), condition=_resize),
    "GatherND": OperatorConditions(constant_inputs=(1,), condition=_attributes(batch_dims=0)),
    "GridSample": OperatorConditions(ranks=(4,)),
    "Shape": OperatorConditions(condition=_shape),
    **_alike("Concat DepthToSpace Gather Tile Transpose", OperatorConditions()),
}
