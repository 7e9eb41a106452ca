"""`fastvlm-onnx download`, and `export` of a checkpoint that it downloads first."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from apple_archive import NAME, PART, files_of, left_in
from archive_server import ArchiveServer

from fastvlm_onnx.cli import main
from fastvlm_onnx.commands.download import LICENSE_NOTICE
from fastvlm_onnx.export.sources import apple_zoo


def start(server: ArchiveServer, folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fastvlm_onnx", "download", "0.5b", *options]
    return subprocess.Popen(
        [*command, "--base-url", f"{server.address}/datasets"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # The process that runs the tests may ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def wait_for_bytes(server: ArchiveServer, process: subprocess.Popen[str], part: Path) -> None:
    while process.poll() is None and not (part.exists() and part.stat().st_size > 500_000):
        time.sleep(0.01)
    assert process.poll() is None


def test_the_download_command_names_the_next_command(server: ArchiveServer, tmp_path: Path) -> None:
    first = start(server, tmp_path)
    out, err = first.communicate()
    assert (first.returncode, out) == (0, "")
    next_line = f"next: fastvlm-onnx export {NAME}"
    assert err.splitlines() == [*LICENSE_NOTICE.splitlines(), f"wrote {NAME}", next_line]
    second = start(server, tmp_path)
    out, err = second.communicate()
    assert (second.returncode, out) == (0, "")
    assert err.splitlines() == [f"{NAME}: already holds the whole checkpoint", next_line]


def test_the_download_command_reports_a_missing_archive_in_one_line(
    server: ArchiveServer, tmp_path: Path
) -> None:
    process = start(server, tmp_path, "--stage", "2", "-o", "mine")
    out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    (line,) = err.splitlines()
    assert "llava-fastvithd_0.5b_stage2.zip" in line
    assert "404" in line
    assert left_in(tmp_path) == set()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_or_interrupted_download_is_continued(
    server: ArchiveServer, tmp_path: Path, how: signal.Signals, demo_checkpoint: Path
) -> None:
    server.seconds = 0.03
    process = start(server, tmp_path)
    wait_for_bytes(server, process, tmp_path / PART)
    process.send_signal(how)
    _, err = process.communicate()
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert err.splitlines()[-1] == "interrupted"
    # A killed process leaves the file of its lock behind.
    assert left_in(tmp_path) - {f"{PART}.lock"} == {PART, f"{PART}.json"}
    fetched_bytes = (tmp_path / PART).stat().st_size
    server.seconds = 0
    again = start(server, tmp_path)
    assert again.communicate()[0] == ""
    assert again.returncode == 0
    assert server.ranges == [None, f"bytes={fetched_bytes}-"]
    assert files_of(tmp_path / NAME) == files_of(demo_checkpoint)
    assert left_in(tmp_path) == {NAME}


def test_the_export_command_names_the_licence_as_a_download_begins(
    server: ArchiveServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(apple_zoo, "APPLE_BASE_URL", f"{server.address}/datasets")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        main(["export", "0.5b", "-o", "onnx", "--overwrite"])
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == [*LICENSE_NOTICE.splitlines(), "wrote onnx", "wrote onnx"]


def test_the_verify_command_names_the_licence_as_a_download_begins(
    server: ArchiveServer,
    package: Path,
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(apple_zoo, "APPLE_BASE_URL", f"{server.address}/datasets")
    monkeypatch.chdir(tmp_path)
    main(["verify", str(package), "0.5b", "--picture", str(picture), "--steps", "1"])
    assert capfd.readouterr().err.splitlines() == LICENSE_NOTICE.splitlines()
