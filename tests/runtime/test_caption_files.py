"""The files of captions: lines of JSON, CSV, parquet, and a text beside each picture."""

import csv
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import refusal, run

from fastvlm_onnx import FastVLM, Generation, InputError
from fastvlm_onnx.runtime.captions.caption import COLUMNS, Caption
from fastvlm_onnx.runtime.captions.destination import caption_file
from fastvlm_onnx.runtime.captions.text_files import TextFiles

SUFFIXES = (".jsonl", ".csv", ".parquet")
AWKWARD = 'He said: "a,\r\nb;\n日本"\r'
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def answer(model: FastVLM) -> Generation:
    return model.generate(None, "Hi", max_new_tokens=2)


@pytest.fixture(params=SUFFIXES)
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The path of a file in each form."""
    if request.param == ".parquet":
        pytest.importorskip("pyarrow", reason="pyarrow (extra [parquet]) is not installed")
    return tmp_path / f"captions{request.param}"


@pytest.fixture
def answered(answer: Generation) -> Callable[[str], Caption]:
    return lambda path: Caption(path, replace(answer, text=f"{path} {AWKWARD}"), None)


def rows_of(path: Path) -> Rows:
    """The rows of a file as a user's program reads them, without empty fields."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        rows = pq.read_table(path).to_pylist()
    elif path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    else:
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [{k: v for k, v in row.items() if v not in (None, "")} for row in rows]


def failed(path: str) -> Caption:
    return Caption(path, None, f"{path}: not a picture")


def test_each_form_keeps_text_and_error(
    output: Path, answered: Callable[[str], Caption], answer: Generation
) -> None:
    parsed = replace(answer, text="{}", parsed={"a": [1, "ü"]})
    with caption_file(output, resume=False) as file:
        for caption in (answered("a.png"), failed("b.png"), Caption("c.png", parsed, None)):
            file.write(caption)
    first, second, third = rows_of(output)
    assert (first["path"], first["text"]) == ("a.png", f"a.png {AWKWARD}")
    assert float(first["seconds"]) >= 0
    assert second == {"path": "b.png", "error": "b.png: not a picture"}
    value = third["parsed"]
    assert (json.loads(value) if isinstance(value, str) else value) == {"a": [1, "ü"]}
    assert [path.name for path in output.parent.iterdir()] == [output.name]


def test_resume_adds_to_each_form_and_tries_errors_again(
    output: Path, answered: Callable[[str], Caption]
) -> None:
    with caption_file(output, resume=False) as file:
        file.write(answered("a.png"))
        file.write(failed("b.png"))
    with caption_file(output, resume=True) as file:
        asked = file.pending(["a.png", "b.png", "c.png"])
        assert asked == ["b.png", "c.png"]
        file.drop_errors(asked)
        file.write(answered("b.png"))
        file.write(failed("c.png"))
    assert [row["path"] for row in rows_of(output)] == ["a.png", "b.png", "c.png"]
    assert (file.answered, file.failed) == ({"a.png", "b.png"}, {"c.png"})
    with pytest.raises(InputError, match="exists already"), caption_file(output, resume=False):
        pass


def test_a_run_that_breaks_off_is_resumed_in_each_form(
    output: Path, answered: Callable[[str], Caption]
) -> None:
    def interrupted() -> None:
        with caption_file(output, resume=False) as file:
            file.write(answered("a.png"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with caption_file(output, resume=True) as file:
        assert file.pending(["a.png", "b.png"]) == ["b.png"]
        file.write(answered("b.png"))
    assert [row["path"] for row in rows_of(output)] == ["a.png", "b.png"]
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_resume_cuts_off_a_record_that_is_incomplete_at_any_byte(
    suffix: str, tmp_path: Path, answered: Callable[[str], Caption]
) -> None:
    output = tmp_path / f"captions{suffix}"
    with caption_file(output, resume=False) as file:
        file.write(answered("a.png"))
    whole = output.read_bytes()
    with caption_file(output, resume=True) as file:
        file.write(answered("b.png"))
    both = output.read_bytes()
    for end in range(len(whole), len(both)):
        output.write_bytes(both[:end])
        with caption_file(output, resume=True) as file:
            assert file.answered == {"a.png"}
        assert output.read_bytes() == whole


def test_a_header_that_is_incomplete_is_written_again(
    tmp_path: Path, answered: Callable[[str], Caption]
) -> None:
    output = tmp_path / "captions.csv"
    output.write_bytes(b"path,te")
    with caption_file(output, resume=True) as file:
        file.write(answered("a.png"))
    assert output.read_text("utf-8").splitlines()[0] == ",".join(COLUMNS)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"a,b\r\n1,2\r\n", "row 1 is not a caption"), (b"PAR1 no parquet", "row 1 is not a caption")],
)
def test_resume_refuses_a_table_of_another_program(
    tmp_path: Path, content: bytes, words: str
) -> None:
    output = tmp_path / "captions.csv"
    output.write_bytes(content + b"\n")
    with pytest.raises(InputError, match=words), caption_file(output, resume=True):
        pass
    assert output.read_bytes() == content + b"\n"


def test_resume_refuses_a_parquet_file_of_another_program(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow (extra [parquet]) is not installed")
    import pyarrow.parquet as pq

    output = tmp_path / "captions.parquet"
    pq.write_table(pa.table({"number": [1]}), output)
    with (
        pytest.raises(InputError, match="has the columns number"),
        caption_file(output, resume=True),
    ):
        pass
    output.write_bytes(b"PAR1 nothing")
    damaged = pytest.raises(InputError, match="cannot be read as parquet")
    with damaged, caption_file(output, resume=True):
        pass
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no file names that are not UTF-8")
def test_each_form_finds_a_name_that_is_not_utf8_again(
    output: Path, answered: Callable[[str], Caption]
) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    with caption_file(output, resume=False) as file:
        file.write(replace(answered("x"), path=name))
    with caption_file(output, resume=True) as file:
        assert file.pending([name]) == []


def test_without_pyarrow_parquet_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # importing it now fails
    name = "fastvlm_onnx.runtime.captions.parquet_file"
    monkeypatch.delitem(sys.modules, name, raising=False)
    missing = pytest.raises(InputError, match=r"fastvlm-onnx\[parquet\]")
    with missing, caption_file(tmp_path / "captions.parquet", resume=False):
        pass
    assert not list(tmp_path.iterdir())


# --- a text beside each picture -------------------------------------------------------------------


def test_txt_writes_a_file_beside_each_picture(
    tmp_path: Path, package: Path, picture: Path, model: FastVLM
) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(picture.read_bytes())
    bad.write_bytes(b"no picture")
    command = ("caption", tmp_path, "--model", package, "--txt", "--max-new-tokens", 3)
    done = run(*command)
    assert (done.returncode, done.stdout) == (3, "")
    assert f"error: {bad}: not a picture" in done.stderr
    text = model.generate(picture, "Describe the image.", max_new_tokens=3).text
    assert (tmp_path / "good.txt").read_bytes() == text.encode() + b"\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.png", "good.png", "good.txt"]
    assert "1 of 2 pictures have a text file already" in refusal(*command)

    (tmp_path / "good.txt").write_text("mine")
    bad.write_bytes(picture.read_bytes())
    assert run(*command, "--resume").returncode == 0
    assert (tmp_path / "good.txt").read_text() == "mine"
    assert (tmp_path / "bad.txt").read_bytes() == text.encode() + b"\n"


def test_pictures_that_would_share_a_text_file_are_refused() -> None:
    with pytest.raises(InputError, match=r"a\.png and a\.jpg would have the same file a\.txt"):
        TextFiles(["a.png", "a.jpg"], resume=True)
    with pytest.raises(InputError, match=r"a\.txt would have the same file"):
        TextFiles(["a.txt"], resume=True)


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_text_files_that_differ_in_case_alone_are_refused_where_names_have_no_case(
    system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake `sys.platform` stands in for the system."""
    TextFiles(["a.png", "A.jpg"], resume=True)
    monkeypatch.setattr("sys.platform", system)
    with pytest.raises(InputError, match="would have the same file"):
        TextFiles(["a.png", "A.jpg"], resume=True)
