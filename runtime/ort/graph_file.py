"""Read an ONNX file's references to other files, without the onnx package and its memory.

ONNX Runtime opens each external file that a graph names. A graph of a package may name only files
that the manifest lists, or else a package from a stranger reads any file of the machine.

Source: the protobuf messages of onnx.proto (onnx 1.23), of which only the parts that lead to a
tensor are read.
"""

import mmap
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fastvlm_onnx.errors import PackageError

# Message -> number of a field -> the message in it.
_MESSAGES: Final[Mapping[str, Mapping[int, str]]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {4: "op_type", 5: "Attribute"},
    "Attribute": {
        5: "Tensor",
        6: "Graph",
        10: "Tensor",
        11: "Graph",
        22: "SparseTensor",
        23: "SparseTensor",
    },
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "ExternalData"},
    "ExternalData": {1: "key", 2: "value"},
}
# Graphs of this project have a depth of 9: a Scan body in a graph.
_DEEPEST: Final = 40
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
# A node that makes a provider load a compiled model from a file or from the graph.
COMPILED_NODE: Final = "EPContext"


@dataclass
class References:
    """The names in a graph that lead to other code or data.

    Attributes:
        files: the location of each external tensor, as the graph has it.
        operators: types of all nodes.
    """

    files: set[str] = field(default_factory=set)
    operators: set[str] = field(default_factory=set)


def check_graph(path: Path, allowed: Collection[str]) -> None:
    """Check that a graph names only allowed files, in its own folder, and no compiled model.

    Args:
        path: the graph's file.
        allowed: names of the files that it may read.

    Raises:
        PackageError: the file is no ONNX graph, or names another file or a compiled model.
    """
    found = references(path)
    for name in sorted(found.files):
        # ONNX Runtime gives other meanings to some names with a slash.
        if name not in allowed or "/" in name or "\\" in name:
            raise PackageError(
                f"{path}: reads the file {name[:100]!r}, which the manifest does not list for it; "
                "do not trust this package."
            )
    if COMPILED_NODE in found.operators:
        raise PackageError(
            f"{path}: holds a compiled model ({COMPILED_NODE}), which cannot be checked; "
            "do not trust this package."
        )


def references(path: Path) -> References:
    """Return the references of a graph, its subgraphs and functions.

    Raises:
        PackageError: the file is no ONNX graph.
    """
    found = References()
    try:
        # The map closes with the last view of it, which an exception may still hold.
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        _read(memoryview(data), "Model", found, 0)
    except (OSError, ValueError) as error:
        raise PackageError(
            f"{path}: not an ONNX graph ({error}); copy or export the package again."
        ) from None
    return found


def _read(data: memoryview, message: str, found: References, depth: int) -> None:
    """Collect the references of one message.

    Raises:
        ValueError: the message breaks protobuf's format, or is nested too deeply.
    """
    if depth > _DEEPEST:
        raise ValueError("its messages are nested too deeply")
    inner = _MESSAGES[message]
    texts = {"key": "", "value": ""}
    for number, part in _length_delimited(data):
        name = inner.get(number)
        if name is None:
            continue
        if name in texts:
            texts[name] = bytes(part).decode("utf-8", "replace")
        elif name == "op_type":
            found.operators.add(bytes(part).decode("utf-8", "replace"))
        else:
            _read(part, name, found, depth + 1)
    if texts["key"] == "location":
        found.files.add(texts["value"])


def _length_delimited(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield the number and the bytes of each field that has a length."""
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            _, at = _varint(data, at)
            continue
        if kind == _BYTES:
            size, at = _varint(data, at)
        elif kind in (_FIXED_64, _FIXED_32):
            size = 8 if kind == _FIXED_64 else 4
        else:
            raise ValueError(f"a field has the unknown kind {kind}")
        if size > end - at:
            raise ValueError("it is cut short")
        if kind == _BYTES:
            yield number, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return a number and the place after it."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("a number is cut short")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
