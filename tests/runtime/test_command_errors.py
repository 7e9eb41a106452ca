"""Errors of commands, each found by tests/hostile: one line, exit code 2, nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from fastvlm_onnx.cli import main
from fastvlm_onnx.errors import LONGEST_MESSAGE, InputError

needs_posix = pytest.mark.skipif(os.name != "posix", reason="needs FIFOs and POSIX signals")
COMMAND = [sys.executable, "-m", "fastvlm_onnx"]


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line on stderr of a command that runs in this process."""
    with pytest.raises(SystemExit) as ending:
        main([*map(str, arguments)])
    assert ending.value.code == 2
    line, *more = capsys.readouterr().err.splitlines()
    assert not more
    assert len(line) <= 400
    return line


def test_a_message_is_one_short_line() -> None:
    message = str(InputError(f"two\nlines \x1b[31m {'x' * 5000} \udcff; do this."))
    assert message.startswith("two lines \\x1b[31m xxx")
    assert message.endswith("\\udcff; do this.")
    assert len(message) <= LONGEST_MESSAGE


def test_a_path_that_is_too_long(capsys: pytest.CaptureFixture[str]) -> None:
    assert "File name too long" in refused(capsys, "inspect", "d/" * 3000)


def test_an_argument_with_a_nul(capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds a NUL character" in refused(capsys, "inspect", "a\0b")


@needs_posix
def test_a_fifo_as_a_picture(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "picture.png")
    line = refused(capsys, "generate", tmp_path / "picture.png", "Hi", "--model", package)
    assert "is a FIFO, expected a regular file" in line


def test_a_line_that_is_not_utf_8(package: Path) -> None:
    command = [*COMMAND, "chat", "--model", str(package)]
    done = subprocess.run(
        command,
        input=b"\x89PNG\n",
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == b"error: a line of standard input is not UTF-8; convert it.\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_under_stdout(package: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [*COMMAND, "inspect", str(package)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: stdout cannot be written (no space is left there).\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_under_stderr_does_not_change_a_result(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="the extra [export] is not installed")
    with open("/dev/full", "w") as full:
        command = [*COMMAND, "export", "demo", "-o", str(tmp_path / "out")]
        done = subprocess.run(command, stdout=full, stderr=full, check=False)
    assert done.returncode == 0
    assert (tmp_path / "out/fastvlm.json").is_file()


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "jpeg"])
def test_a_damaged_tiff(
    package: Path, tmp_path: Path, compression: str, capfd: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "picture.tiff"
    Image.effect_noise((40, 30), 60).save(picture, compression=compression)
    content = bytearray(picture.read_bytes())
    content[20:200] = b"\xff" * 180
    picture.write_bytes(content)
    # libtiff writes messages of its own to the file that is stderr.
    line = refused(capfd, "generate", picture, "Hi", "--model", package)
    assert "cannot be decoded" in line


@needs_posix
@pytest.mark.parametrize(
    ("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")]
)
def test_a_signal_during_an_export_leaves_nothing(
    tmp_path: Path, number: signal.Signals, word: str
) -> None:
    pytest.importorskip("onnxscript", reason="the extra [export] is not installed")
    command = [*COMMAND, "export", "demo", "-o", str(tmp_path / "out"), "--precision", "fp32,fp16"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not list(tmp_path.iterdir()):
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(number)
        _, errors = process.communicate()
    assert (process.returncode, errors.strip()) == (128 + number, word)
    assert list(tmp_path.iterdir()) == []


def test_a_fault_of_the_program_is_one_line_with_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_folder: Path) -> None:
        raise KeyError("a mistake\nof ours")

    monkeypatch.setattr("fastvlm_onnx.package.read_manifest", fail)
    with pytest.raises(SystemExit) as ending:
        main(["inspect", "absent"])
    assert ending.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: a fault of fastvlm-onnx (KeyError at test_command_errors.py:")


def test_without_any_standard_stream(package: Path) -> None:
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *COMMAND, "inspect", str(package)]
    assert subprocess.run(closed, check=False).returncode == 0


def test_a_memory_without_room_for_a_library_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_folder: Path) -> None:
        raise ImportError("numpy/random/_generator.so: failed to map segment from shared object")

    monkeypatch.setattr("fastvlm_onnx.package.read_manifest", fail)  # as glibc's loader says it
    assert "the memory is full" in refused(capsys, "inspect", "absent")


def test_a_memory_without_room_for_a_thread_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_folder: Path) -> None:
        raise RuntimeError("can't start new thread")  # as threading says it

    monkeypatch.setattr("fastvlm_onnx.package.read_manifest", fail)
    assert "no further thread can be started" in refused(capsys, "inspect", "absent")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of the address space")
def test_too_little_address_space_is_refused_before_libraries_are_loaded(package: Path) -> None:
    command = ["sh", "-c", 'ulimit -v 200000; exec "$@"', "sh", *COMMAND, "generate"]
    ended = subprocess.run(
        [*command, "--model", str(package), "absent.png", "Hello"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "205 MB of address space, expected at least 600 MB" in ended.stderr


@needs_posix
def test_a_signal_waits_for_the_end_of_an_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (
        "import os, signal, time",
        "os.kill(os.getpid(), signal.SIGTERM)",
        "time.sleep(0.1)",
        "ended = True",
    )
    (tmp_path / "interrupted_module.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)

    def read(_folder: Path) -> None:
        import interrupted_module

        assert interrupted_module.ended
        time.sleep(10)

    monkeypatch.setattr("fastvlm_onnx.package.read_manifest", read)
    with pytest.raises(SystemExit) as ending:
        main(["inspect", "absent"])
    assert ending.value.code == 143
    assert capsys.readouterr().err == "terminated\n"
    assert sys.modules.pop("interrupted_module").ended


@needs_posix
def test_a_fifo_without_a_writer_is_refused_at_once(
    tmp_path: Path, package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(fifo := tmp_path / "fifo")
    line = refused(capsys, "caption", "x.png", "--prompt-file", fifo, "--model", package)
    assert f"{fifo}: is a FIFO, expected a regular file" in line
