"""The house holds its own rules: imports run one way, and a wheel holds every file."""

import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FACE, EXPORT, RUNTIME = "fastvlm_onnx", "export", "runtime"
BANNED_NAMES = {"utils", "common", "helpers", "base", "core", "manager"}


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Modules that a file imports anywhere, in full."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def roots(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


@pytest.mark.parametrize("path", sources(RUNTIME), ids=lambda path: path.name)
def test_the_runtime_imports_nothing_of_the_export_side(path: Path) -> None:
    banned = {"onnx", "onnxscript", "onnx_ir", "torch", "transformers", "safetensors"}
    assert not roots(path) & banned
    assert not any(name.startswith("fastvlm_onnx.export") for name in imported(path))
    assert "fastvlm_onnx.cli" not in imported(path)


@pytest.mark.parametrize("path", sources(EXPORT), ids=lambda path: path.name)
def test_the_export_side_imports_torch_only_to_compare(path: Path) -> None:
    # weight_files.py asks for torch where a checkpoint is in PyTorch's own format.
    if path.name not in ("reference_model.py", "reference_run.py", "weight_files.py"):
        assert not roots(path) & {"torch", "transformers"}
    if path.name != "verify.py":
        assert not any(name.startswith("fastvlm_onnx.runtime") for name in imported(path))
        assert "onnxruntime" not in roots(path)


SHARED = (
    "agreement.py",
    "errors.py",
    "manifest_format_1.py",
    "manifest_reader.py",
    "names.py",
    "package.py",
    "package_files.py",
    "variants.py",
)


@pytest.mark.parametrize("name", SHARED)
def test_what_both_sides_share_knows_neither(name: str) -> None:
    sides = ("fastvlm_onnx.export", "fastvlm_onnx.runtime", "fastvlm_onnx.cli")
    assert not any(module.startswith(sides) for module in imported(ROOT / FACE / name))
    assert roots(ROOT / FACE / name) <= set(sys.stdlib_module_names) | {"fastvlm_onnx"}


def test_no_file_is_a_drawer() -> None:
    names = {path.stem for folder in (FACE, EXPORT, RUNTIME) for path in sources(folder)}
    assert not names & BANNED_NAMES


@pytest.fixture(scope="module")
def wheel(built_wheel: Path) -> set[str]:
    """Names in the wheel."""
    with zipfile.ZipFile(built_wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_source_file(wheel: set[str]) -> None:
    for folder, prefix in {FACE: "", EXPORT: "fastvlm_onnx/", RUNTIME: "fastvlm_onnx/"}.items():
        for path in sources(folder):
            if path.parent.name == "optimum_register":  # installs into optimum's folder
                continue
            assert f"{prefix}{path.relative_to(ROOT)}" in wheel


def test_the_wheel_holds_the_built_in_model_and_its_pictures(wheel: set[str]) -> None:
    for path in (ROOT / FACE / "demo").rglob("*"):
        if path.is_file():
            assert str(path.relative_to(ROOT)) in wheel
    assert "fastvlm_onnx/py.typed" in wheel


def test_the_wheel_holds_nothing_else(wheel: set[str]) -> None:
    others = {name for name in wheel if ".dist-info/" not in name and not name.startswith(FACE)}
    # Read by optimum where it is installed, and by nobody else.
    assert others == {"optimum/commands/register/register_fastvlm_onnx.py"}


def test_the_built_in_model_is_small() -> None:
    files = [path for path in (ROOT / FACE / "demo").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8_000_000


def test_a_users_program_is_typed(built_wheel: Path, tmp_path: Path) -> None:
    """By mypy's strictest, against the wheel: right types pass, and wrong ones do not."""
    zipfile.ZipFile(built_wheel).extractall(tmp_path / "site")
    program = tmp_path / "program.py"
    program.write_text(
        "import fastvlm_onnx\n"
        "from fastvlm_onnx import Generation\n"
        "\n"
        'with fastvlm_onnx.load("folder", providers={"vision": "coreml"}) as model:\n'
        '    answer: Generation = model.generate("x.png", "Hi", stop=["."], max_time=1.5)\n'
        "    seconds: float = answer.timings.first_token\n"
        '    texts: list[str] = [piece.text for piece in model.stream(b"png", "Hi")]\n'
        "    with model.chat(drop_oldest=True) as chat:\n"
        '        said: str = chat.ask("Hi", model.encode_image("x.png"), logprobs=True).text\n'
        '    many: list[Generation] = model.generate_batch(["x.png"], "Hi", seed=3)\n'
    )
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        'import fastvlm_onnx\n\nmodel = fastvlm_onnx.load(3)\nmodel.generate("x", "Hi", seed="a")\n'
    )
    environment = os.environ | {"MYPYPATH": str(tmp_path / "site")}

    def check(path: Path) -> str:
        command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", str(path)]
        command += ["--config-file=", f"--cache-dir={tmp_path / 'cache'}"]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        ).stdout

    assert check(program).startswith("Success")
    assert "Found 2 errors" in check(wrong)
