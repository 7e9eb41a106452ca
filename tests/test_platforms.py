"""Windows and macOS, where a call differs from Linux. Each fake stands in for that call alone.

docs/platforms.md lists the places.
"""

import ctypes
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import run

from fastvlm_onnx import InputError, PackageError
from fastvlm_onnx.commands import caption as caption_command
from fastvlm_onnx.console import accept_every_character
from fastvlm_onnx.export.disk import atomic_folder
from fastvlm_onnx.runtime.captions.caption import Caption
from fastvlm_onnx.runtime.captions.destination import caption_file

# --- encodings of standard streams ----------------------------------------------------------------


def test_lines_of_json_go_to_a_stream_without_the_characters(
    tmp_path: Path, package: Path, picture: Path
) -> None:
    name = "caf\u00e9 \u65e5\u672c \U0001f600.png"
    (tmp_path / name).write_bytes(picture.read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "fastvlm_onnx", "caption", str(tmp_path), "--model", str(package)],
        env=os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"},
        capture_output=True,
        check=True,
    )
    assert Path(json.loads(done.stdout.decode("cp1252"))["path"]).name == name


def test_an_error_goes_to_a_stream_without_the_characters(package: Path) -> None:
    done = run("generate", "\u65e5.png", "Hi", "--model", package, PYTHONIOENCODING="cp1252")
    assert done.returncode == 2
    assert done.stderr.startswith("error: \\u65e5.png: no such picture")


def test_a_pipe_gets_utf8_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake `sys.platform` and a stream in cp1252 stand in for a pipe of Windows."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "cp1252"))
    accept_every_character()
    print("日本", flush=True)
    assert written.getvalue().rstrip() == "日本".encode()


def test_names_on_standard_input_may_be_in_the_encoding_of_windows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fakes of `os.fsdecode`, which refuses what is no UTF-8, and of `getencoding`: cp1252."""
    monkeypatch.setattr(os, "fsdecode", lambda name: name.decode())
    monkeypatch.setattr("locale.getencoding", lambda: "cp1252")
    stdin = SimpleNamespace(buffer=io.BytesIO("caf\u00e9.png\r\n".encode("cp1252")))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert caption_command._names(("-",)) == ["caf\u00e9.png"]


# --- files that another program has open ----------------------------------------------------------


def test_a_package_that_is_open_elsewhere_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake `Path.rename` refuses, as on Windows while a model maps the package's files."""
    destination = tmp_path / "onnx"
    destination.mkdir()
    (destination / "kept").touch()
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self == destination:
            raise PermissionError(13, "Access is denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    in_use = pytest.raises(
        PackageError, match=r"cannot be replaced \(Access is denied\); close the"
    )
    with in_use, atomic_folder.unfinished_folder(destination) as unfinished:
        (unfinished / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["onnx", "kept"]


def test_captions_that_are_open_elsewhere_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake `Path.replace` refuses, as on Windows while a spreadsheet shows the file."""
    output = tmp_path / "captions.csv"
    with caption_file(output, resume=False) as file:
        file.write(Caption("a.png", None, "not a picture"))
    before = output.read_bytes()

    def refuse(_self: Path, _target: Path) -> Path:
        raise PermissionError(13, "Access is denied")

    def resume() -> None:
        with caption_file(output, resume=True) as file:
            file.drop_errors(["a.png"])

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(InputError, match=r"cannot be written \(Access is denied"):
        resume()
    assert output.read_bytes() == before
    assert list(tmp_path.iterdir()) == [output]


# --- processes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handle", "last_error", "exit_code", "is_running"),
    [(7, 0, 259, True), (7, 0, 0, False), (0, 87, 0, False), (0, 5, 0, True)],
)
def test_windows_is_asked_whether_an_export_still_runs(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    handle: int,
    last_error: int,
    exit_code: int,
    is_running: bool,
) -> None:
    """A fake kernel32 answers: a running process, an ended process, no such process, no right."""
    closed: list[int] = []

    def set_exit_code(_process: int, code: "ctypes._Pointer[ctypes.c_ulong]") -> int:
        code._obj.value = exit_code  # type: ignore[attr-defined]
        return 1

    kernel32 = SimpleNamespace(
        OpenProcess=lambda access, inherit, pid: handle,
        GetLastError=lambda: last_error,
        GetExitCodeProcess=set_exit_code,
        CloseHandle=closed.append,
    )
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel32), raising=False)
    monkeypatch.setattr(atomic_folder.sys, "platform", "win32")
    abandoned = tmp_path / ".onnx.unfinished-4711"
    abandoned.mkdir()
    with atomic_folder.unfinished_folder(tmp_path / "onnx"):
        assert abandoned.exists() == is_running
    assert closed == ([handle] if handle else [])
