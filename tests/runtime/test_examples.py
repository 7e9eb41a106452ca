"""The programs in examples/, and the Python in README.md, run as they stand."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastvlm_onnx import FastVLM

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "Describe the image."


def run_example(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def test_every_example_is_run_here() -> None:
    written = {path.stem for path in (ROOT / "examples").glob("*.py")}
    # tests/clients/test_engines.py runs the one for OpenVINO.
    assert written == {"ask", "stream", "chat", "folder", "encode_once", "openvino_only"}


def test_ask_prints_the_answer(package: Path, picture: Path, model: FastVLM) -> None:
    done = run_example("ask", package, picture, PROMPT)
    assert done.stdout == model.generate(picture, PROMPT).text + "\n"
    assert "first token after" in done.stderr


def test_stream_stops_after_a_sentence(package: Path, picture: Path, model: FastVLM) -> None:
    done = run_example("stream", package, picture, PROMPT)
    assert done.stdout == model.generate(picture, PROMPT).text.split(".")[0] + "\n"


def test_chat_answers_about_two_pictures(package: Path, picture: Path, questions: dict) -> None:
    first, second = (picture.with_name(name) for name in list(questions)[:2])
    lines = run_example("chat", package, first, second).stdout.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("Describe the image. ")


def test_folder_gives_a_line_for_each_picture(
    package: Path, picture: Path, model: FastVLM, questions: dict
) -> None:
    lines = run_example("folder", package, picture.parent, PROMPT).stdout.splitlines()
    found = {Path(line["path"]).name: line["text"] for line in map(json.loads, lines)}
    assert found == {n: model.generate(picture.with_name(n), PROMPT).text for n in questions}


def test_encode_once_answers_every_question_twice(
    package: Path, picture: Path, questions: dict
) -> None:
    prompts, answers = zip(*questions[picture.name].items(), strict=True)
    done = run_example("encode_once", package, picture, *prompts)
    assert done.stdout.splitlines() == [*answers, *answers]


@pytest.mark.parametrize("page", ["README.md", "docs/library.md", "docs/structured.md"])
def test_python_on_a_page_runs(page: str, package: Path, picture: Path, tmp_path: Path) -> None:
    """Each block by itself, but for a page that goes on with the model of its first block."""
    path = ROOT / page
    if not path.exists():
        pytest.skip(f"no {page} beside these tests")
    if page == "docs/structured.md":
        pytest.importorskip("llguidance", reason="the extra `structured` is not installed")
    programs = re.findall(r"```python\n(.*?)```", path.read_text("utf-8"), re.DOTALL)
    assert len(programs) >= 2
    if page != "README.md":
        programs = ["".join(programs)]
    (tmp_path / "fastvlm-0.5b-onnx").symlink_to(package)
    for name in ("photo.jpg", "other.jpg"):
        (tmp_path / name).write_bytes(picture.read_bytes())
    for program in programs:
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env=os.environ | {"PYTHONWARNINGS": "error"},
            check=True,
        )
