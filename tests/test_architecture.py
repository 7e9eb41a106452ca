"""The house holds its own plan: which room may import which, and no circles.

Imports are read from the source, those inside functions and under TYPE_CHECKING included.
docs/architecture.md draws this table.
"""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "fastvlm_onnx": "fastvlm_onnx",
    "export": "fastvlm_onnx.export",
    "runtime": "fastvlm_onnx.runtime",
}
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


def imports_of(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from package import module` and `from module import name` look alike.
            names = [
                whole if (whole := f"{node.module}.{alias.name}") in modules() else str(node.module)
                for alias in node.names
            ]
        else:
            continue
        yield from (name for name in names if name in modules())


@cache
def file_edges() -> Edges:
    return {name: set(imports_of(path)) - {name} for name, path in modules().items()}


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


@pytest.mark.xfail(strict=True, reason="three circles hide in lazy and TYPE_CHECKING imports")
def test_no_circle_between_files() -> None:
    assert circles(file_edges()) == []


@pytest.mark.parametrize("name", sorted(name for name in modules() if ".runtime" in name))
def test_the_runtime_imports_nothing_of_the_export_side(name: str) -> None:
    tree = ast.parse(modules()[name].read_text("utf-8"))
    roots = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    } | {
        str(node.module).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
    }
    assert not roots & {"onnx", "onnx_ir", "onnxscript", "torch", "transformers", "safetensors"}
    assert not any(target.startswith("fastvlm_onnx.export") for target in file_edges()[name])
