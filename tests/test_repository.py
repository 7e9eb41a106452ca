"""Rules of the repository: file names, the wheel's files, links between pages, public types."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FACE, EXPORT, RUNTIME = "fastvlm_onnx", "export", "runtime"
BANNED_NAMES = {"utils", "common", "helpers", "base", "core", "manager"}


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def test_no_source_file_is_named_utils_or_common() -> None:
    names = {path.stem for folder in (FACE, EXPORT, RUNTIME) for path in sources(folder)}
    assert not names & BANNED_NAMES


# --- pages ---------------------------------------------------------------------------------------


def pages() -> list[Path]:
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file_and_heading_that_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))
    for link in links:
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        name, _, fragment = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not fragment or fragment in anchors(target), link


def test_the_readme_names_every_dependency_of_the_runtime() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    required = project["dependencies"] + project["optional-dependencies"]["cpu"]
    readme = (ROOT / "README.md").read_text("utf-8")
    listed = readme[readme.index("direct dependencies:") :].partition(";")[0]
    assert {re.split(r"[><=]", name)[0] for name in required} <= set(re.findall(r"\w+", listed))


def test_the_index_lists_every_page_of_docs() -> None:
    index = (ROOT / "docs/README.md").read_text("utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert name == "README.md" or f"]({name})" in index, name


@pytest.mark.parametrize("page", ["docs/architecture.md", "SECURITY.md", "CONTRIBUTING.md"])
def test_every_source_path_that_a_page_names_exists(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    for path in re.findall(
        r"`((?:export|runtime|fastvlm_onnx|tests|docs|benchmarks)/[\w/.]*)`", text
    ):
        assert (ROOT / path).exists(), path


def benchmark_commands(text: str) -> list[tuple[str, list[str]]]:
    """Return the benchmarks that a text names, with their arguments; code spans may break."""
    text = re.sub(r"\\\n\s*", " ", text)
    text = re.sub(r"`[^`\n]+\n[^`\n]+`", lambda span: span[0].replace("\n", " "), text)
    found = re.findall(r"python benchmarks/(\w+\.py)([^`|#\n]*)", text)
    return [(script, arguments.split()) for script, arguments in found]


def declared_options(script: Path) -> tuple[set[str], list[set[str]]]:
    """Return all options that a script declares, and the names of each that it requires.

    Of a script with subcommands, none is returned as required.
    """
    names, required, has_commands = set(), [], False
    for node in ast.walk(ast.parse(script.read_text("utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            has_commands |= node.func.attr == "add_subparsers"
            if node.func.attr == "add_argument":
                own = {name.value for name in node.args if isinstance(name, ast.Constant)}
                names |= own
                if any(k.arg == "required" and ast.literal_eval(k.value) for k in node.keywords):
                    required.append(own)
    return names, [] if has_commands else required


def test_every_benchmark_command_has_options_that_its_script_takes() -> None:
    programs = [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "benchmarks").glob("*.log")]
    checked = 0
    for page in (*pages(), *(ROOT / "clients").glob("*/README.md"), *programs):
        for script, arguments in benchmark_commands(page.read_text("utf-8")):
            names, required = declared_options(ROOT / "benchmarks" / script)
            given = {argument for argument in arguments if re.match(r"--?[a-z]", argument)}
            assert given <= names, f"{page.name}: {script} has no {given - names}"
            for option in required:
                assert given & option, f"{page.name}: {script} lacks {option}"
            checked += 1
    assert checked > 60


# --- the wheel -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(built_wheel: Path) -> set[str]:
    """Names in the wheel."""
    with zipfile.ZipFile(built_wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_source_file(wheel: set[str]) -> None:
    for folder, prefix in {FACE: "", EXPORT: "fastvlm_onnx/", RUNTIME: "fastvlm_onnx/"}.items():
        for path in sources(folder):
            if path.parent.name == "optimum_register":  # installed into optimum's own folder
                continue
            assert f"{prefix}{path.relative_to(ROOT)}" in wheel


def test_the_wheel_holds_the_built_in_model_and_its_pictures(wheel: set[str]) -> None:
    for path in (ROOT / FACE / "demo").rglob("*"):
        if path.is_file():
            assert str(path.relative_to(ROOT)) in wheel
    assert "fastvlm_onnx/py.typed" in wheel
    assert "fastvlm_onnx/export/calibration/texts.json" in wheel


def test_the_wheel_holds_the_client_for_browsers(wheel: set[str]) -> None:
    client = ROOT / "clients/javascript"
    sources = [client / "package.json", *client.glob("page/*.js"), *client.glob("src/**/*.js")]
    assert len(sources) > 20
    for path in sources:
        assert f"fastvlm_onnx/javascript/{path.relative_to(client)}" in wheel
    assert not any("node_modules" in name for name in wheel)


def test_the_wheel_installs_nothing_outside_the_package_but_the_optimum_command(
    wheel: set[str],
) -> None:
    others = {name for name in wheel if ".dist-info/" not in name and not name.startswith(FACE)}
    # optimum reads this file where optimum is installed; nothing else imports it.
    assert others == {"optimum/commands/register/register_fastvlm_onnx.py"}


def test_the_built_in_model_is_small() -> None:
    files = [path for path in (ROOT / FACE / "demo").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 10_000_000


# --- public types --------------------------------------------------------------------------------


def test_mypy_strict_checks_a_program_that_uses_the_wheel(
    built_wheel: Path, tmp_path: Path
) -> None:
    """mypy --strict over the wheel accepts a correct program and refuses a wrong program."""
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


def test_the_sample_folder_holds_the_sample_pictures_alone() -> None:
    folder = ROOT / "fastvlm_onnx/demo/pictures"
    asked = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    assert {path.name for path in folder.iterdir()} == {"questions.json", *asked}
