"""Which room may import which, and no circles.

Imports are read from the source. Imports inside functions and under TYPE_CHECKING count too.
`rooms.py` holds the table of allowed imports, and docs/architecture.md shows it.
"""

import ast
import json
import re
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rooms import ALLOWED, room_of

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "fastvlm_onnx": "fastvlm_onnx",
    "export": "fastvlm_onnx.export",
    "runtime": "fastvlm_onnx.runtime",
}
EXPORT_PACKAGES = {"onnx", "onnx_ir", "onnxscript", "safetensors", "torch", "transformers"}
# The files that run PyTorch. weight_files.py needs it only for checkpoints in PyTorch's format.
TORCH_MODULES = {"reference_model", "reference_run", "weight_files"}
Edges = Mapping[str, set[str]]


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its import name."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join((package, *parts)).removesuffix(".__init__")
            found[name] = path
    return found


@cache
def imported(module: str) -> frozenset[str]:
    """Full names that a module imports anywhere, of this package and of others.

    `from package import name` gives "package" and "package.name", since the source does not show
    whether the name is a module.
    """
    names: set[str] = set()
    path = modules()[module]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
            if not all(f"{node.module}.{alias.name}" in modules() for alias in node.names):
                names.add(str(node.module))
    return frozenset(names)


def packages(module: str) -> set[str]:
    """Top-level packages that a module imports."""
    return {name.split(".")[0] for name in imported(module)}


@cache
def file_edges() -> Edges:
    return {name: (imported(name) & modules().keys()) - {name} for name in modules()}


@cache
def room_edges() -> Edges:
    """Imports between rooms, without those of `shared`, which every room may import."""
    edges: dict[str, set[str]] = {}
    for module, targets in file_edges().items():
        room = room_of(module)
        edges.setdefault(room, set()).update({room_of(target) for target in targets} - {room})
    return {room: targets - {"shared"} for room, targets in edges.items()}


def circles(edges: Edges) -> list[str]:
    """Groups of names that reach each other, as "a <-> b"."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for name in edges.get(waiting.pop(), set()) - seen:
                seen.add(name)
                waiting.append(name)
        return seen

    reach = {name: reached(name) for name in edges}
    groups = {
        frozenset(other for other in reach[name] if name in reach.get(other, ()))
        for name in edges
        if name in reach[name]
    }
    return sorted(" <-> ".join(sorted(group)) for group in groups)


# --- rooms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_a_room_imports_exactly_the_rooms_of_its_table_row(room: str) -> None:
    found = room_edges().get(room, set())
    assert found - ALLOWED[room] == set(), "imports that the table does not allow"
    assert ALLOWED[room] - found == set(), "imports that the table allows and no file needs"


def test_every_room_has_a_table_row() -> None:
    rooms = {room for room in room_edges() if room_edges()[room]} | set().union(
        *room_edges().values()
    )
    assert rooms <= ALLOWED.keys()


def test_no_circle_in_the_table_of_rooms() -> None:
    assert circles(ALLOWED) == []


def test_no_circle_between_files() -> None:
    assert circles(file_edges()) == []


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b <-> c"]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


# --- packages of others --------------------------------------------------------------------------


@pytest.mark.parametrize("module", sorted(name for name in modules() if ".runtime" in name))
def test_the_runtime_imports_nothing_of_the_export_side(module: str) -> None:
    assert not packages(module) & EXPORT_PACKAGES
    assert not any(name.startswith("fastvlm_onnx.export") for name in imported(module))


@pytest.mark.parametrize("module", sorted(name for name in modules() if ".export" in name))
def test_the_export_side_imports_torch_only_to_compare(module: str) -> None:
    if module.split(".")[-1] not in TORCH_MODULES:
        assert not packages(module) & {"torch", "transformers"}
    if room_of(module) != "export.verification":
        assert "onnxruntime" not in packages(module)


@pytest.mark.parametrize("module", sorted(name for name in modules() if room_of(name) == "shared"))
def test_a_shared_module_needs_only_the_standard_library(module: str) -> None:
    # user_data asks click for the user's folder, and hub_snapshot needs huggingface_hub.
    if module.split(".")[-1] not in ("user_data", "hub_snapshot"):
        assert packages(module) <= {*sys.stdlib_module_names, "fastvlm_onnx"}


def test_the_shared_modules_import_no_room() -> None:
    assert room_edges()["shared"] == set()


# --- the page and its picture --------------------------------------------------------------------


def test_the_page_shows_the_table_of_rooms() -> None:
    page = (ROOT / "docs/architecture.md").read_text("utf-8")
    rows = re.findall(r"^\| `([\w.]+)` \|[^|]+\|([^|]*)\|$", page, re.MULTILINE)
    assert {room: set(re.findall(r"`([\w.]+)`", targets)) for room, targets in rows} == ALLOWED


def test_the_picture_is_drawn_from_the_table_of_rooms() -> None:
    picture = ElementTree.parse(ROOT / "docs/architecture.svg")
    described = picture.find(".//{http://purl.org/dc/elements/1.1/}description")
    assert described is not None
    table = {room: sorted(targets) for room, targets in ALLOWED.items()}
    assert json.loads(described.text or "") == table, "run `python docs/draw_architecture.py`"
