"""Downloads of Apple's archives over a failing network: a part is never taken for a checkpoint."""

import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from apple_archive import NAME, files_of, left_in, zip_of
from archive_server import ArchiveServer, serve

from fastvlm_onnx import CheckpointError, InputError, PackageError
from fastvlm_onnx.cli import main
from fastvlm_onnx.commands.download import LICENSE_NOTICE
from fastvlm_onnx.errors import FastVLMError
from fastvlm_onnx.export.checkpoint.reader import is_whole_checkpoint
from fastvlm_onnx.export.pipeline import export_package
from fastvlm_onnx.export.sources import apple_zoo, http_resume
from fastvlm_onnx.export.sources.apple_zoo import (
    download_checkpoint,
    find_or_download_checkpoint,
)
from fastvlm_onnx.export.sources.open_checkpoint import open_checkpoint

PART = f"{NAME}.zip.part"
Download = Callable[..., Path]
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def server(archive: bytes) -> Iterator[ArchiveServer]:
    with serve(ArchiveServer(f"/datasets/{NAME}.zip", archive)) as started:
        yield started


@pytest.fixture
def fetched(tmp_path: Path, server: ArchiveServer) -> Download:
    """Download from the server into the test's own folder, without waiting between tries."""

    def run(**options: object) -> Path:
        options = {"base_url": f"{server.address}/datasets", "pauses_seconds": (0, 0)} | options
        return download_checkpoint("0.5b", 3, tmp_path / NAME, **options)

    return run


@pytest.fixture
def refusal(fetched: Download, tmp_path: Path) -> Callable[..., str]:
    """Return the one line of a refused download, which leaves no checkpoint behind."""

    def run(kind: type[FastVLMError] = CheckpointError, **options: object) -> str:
        with pytest.raises(kind) as caught:
            fetched(**options)
        # The lock is there while another process downloads.
        assert left_in(tmp_path) <= {PART, f"{PART}.json", f"{PART}.lock"}
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return run


# --- downloads that succeed ----------------------------------------------------------------------


def test_a_download_is_the_checkpoint_and_nothing_else(
    fetched: Download, tmp_path: Path, demo_checkpoint: Path, capfd: pytest.CaptureFixture
) -> None:
    told = []
    folder = fetched(progress=lambda *what: told.append(what))
    assert files_of(folder) == files_of(demo_checkpoint)
    assert left_in(tmp_path) == {NAME}
    assert {stage for stage, _, _ in told} == {"download", "unpack"}
    for stage in ("download", "unpack"):
        done = [(now, total) for name, now, total in told if name == stage]
        assert done == sorted(done)
        assert done[0][0] == 0
        assert done[-1][0] == done[-1][1]
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_a_whole_checkpoint_is_not_downloaded_again(
    fetched: Download, server: ArchiveServer
) -> None:
    fetched()
    fetched()
    assert len(server.ranges) == 1


def test_an_empty_folder_is_filled(fetched: Download, tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    assert open_checkpoint(fetched())


def test_the_download_and_its_zip_export_to_the_same_bytes_as_the_folder(
    fetched: Download, archive: bytes, tmp_path: Path, demo_checkpoint: Path
) -> None:
    zipped = tmp_path / "zipped" / f"{NAME}.zip"
    zipped.parent.mkdir()
    zipped.write_bytes(archive)
    original = shutil.copytree(demo_checkpoint, tmp_path / "original" / NAME)
    for source, name in ((original, "a"), (fetched(), "b"), (zipped, "c")):
        export_package(source, tmp_path / name)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b") == files_of(tmp_path / "c")


def test_a_size_is_looked_for_here_then_in_the_user_s_data(
    server: ArchiveServer,
    user_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    demo_checkpoint: Path,
) -> None:
    monkeypatch.setattr(apple_zoo, "APPLE_BASE_URL", f"{server.address}/datasets")
    monkeypatch.chdir(tmp_path)
    assert open_checkpoint("0.5b").name == NAME
    assert open_checkpoint("0.5B").name == NAME
    assert left_in(tmp_path) == set()
    assert left_in(user_folder) == {NAME}
    assert len(server.ranges) == 1
    shutil.copytree(demo_checkpoint, NAME)
    assert find_or_download_checkpoint("0.5b") == tmp_path / NAME
    (tmp_path / NAME / "model.safetensors").write_bytes(b"cut")
    assert find_or_download_checkpoint("0.5b") == user_folder / NAME


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


def test_a_checkpoint_is_found_whole_without_reading_its_tensors(
    checkpoint: Path, edit_tensors: Callable
) -> None:
    # A comparison of the two matrices would read a NaN, which is refused.
    def store_nan_twice(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.embed_tokens.weight"][0, 0] = np.nan
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    edit_tensors(store_nan_twice)
    with pytest.raises(CheckpointError, match="NaN"):
        open_checkpoint(checkpoint)
    assert is_whole_checkpoint(checkpoint)


@pytest.mark.parametrize("name", ["config.json", "merges.txt", "model.safetensors"])
def test_a_checkpoint_with_a_cut_file_is_not_whole(checkpoint: Path, name: str) -> None:
    assert is_whole_checkpoint(checkpoint)
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(content[: len(content) // 2])
    assert not is_whole_checkpoint(checkpoint)


# --- failing networks and servers ----------------------------------------------------------------


@pytest.mark.parametrize("with_etag", [True, False], ids=["ETag", "Last-Modified"])
def test_a_cut_download_is_continued(
    fetched: Download, server: ArchiveServer, archive: bytes, with_etag: bool
) -> None:
    if not with_etag:
        server.etag, server.modified = 'W/"weak"', "Mon, 05 May 2025 10:00:00 GMT"
    # There are more cuts than pauses, but the file grows with every try.
    server.cuts = [1_000_000] * 4
    assert open_checkpoint(fetched())
    assert server.ranges == [None, *(f"bytes={n}000000-" for n in range(1, 5))]
    assert server.sent_bytes == len(archive)


def test_a_later_run_continues_an_earlier_download(
    fetched: Download, refusal: Callable, server: ArchiveServer, tmp_path: Path, archive: bytes
) -> None:
    server.cuts = [1_000_000]
    assert "continues the download" in refusal(pauses_seconds=())
    assert (tmp_path / PART).read_bytes() == archive[:1_000_000]
    fetched()
    assert server.ranges == [None, "bytes=1000000-"]
    assert left_in(tmp_path) == {NAME}


def test_a_server_that_ignores_ranges_is_read_from_the_start(
    fetched: Download, server: ArchiveServer
) -> None:
    server.cuts, server.ignores_ranges = [1_000_000], True
    assert open_checkpoint(fetched())


def test_tries_end_with_a_server_that_always_cuts_and_ignores_ranges(
    refusal: Callable, server: ArchiveServer
) -> None:
    server.cuts, server.ignores_ranges, server.for_good = [1_000_000], True, True
    assert "the connection ended after 1000000 of" in refusal()
    assert len(server.ranges) == 3


def test_a_download_without_etag_and_date_starts_again(
    fetched: Download, server: ArchiveServer
) -> None:
    server.etag, server.cuts = None, [1_000_000]
    assert open_checkpoint(fetched())
    assert server.ranges == [None, None]


@pytest.mark.parametrize("ignores_if_range", [False, True])
def test_a_file_that_changed_between_two_tries_is_downloaded_anew(
    fetched: Download,
    refusal: Callable,
    server: ArchiveServer,
    demo_checkpoint: Path,
    ignores_if_range: bool,
) -> None:
    server.cuts = [1_000_000]
    refusal(pauses_seconds=())
    files = {f"{NAME}/{p.name}": p.read_bytes() for p in reversed(list(demo_checkpoint.iterdir()))}
    server.content, server.etag = zip_of(files | {f"{NAME}/new.txt": b"new"}), '"second"'
    server.ignores_if_range = ignores_if_range
    assert files_of(fetched())["new.txt"] == b"new"


def test_a_file_that_changed_at_the_same_length_is_downloaded_anew(
    fetched: Download, refusal: Callable, server: ArchiveServer, demo_checkpoint: Path
) -> None:
    files = {f"{NAME}/{p.name}": p.read_bytes() for p in demo_checkpoint.iterdir()}
    first, second = (zip_of({f"{NAME}/a.txt": text} | files) for text in (b"old", b"new"))
    assert len(first) == len(second)
    server.content, server.cuts = first, [1_000_000]
    refusal(pauses_seconds=())
    server.content, server.etag, server.ignores_if_range = second, '"second"', True
    assert files_of(fetched())["a.txt"] == b"new"


def test_a_file_that_became_shorter_is_downloaded_anew(
    fetched: Download, refusal: Callable, server: ArchiveServer, archive: bytes
) -> None:
    server.content, server.cuts = archive + bytes(1000), [len(archive) + 500]
    refusal(pauses_seconds=())
    server.content, server.ignores_if_range = archive, True
    assert open_checkpoint(fetched())


@pytest.mark.parametrize("total", [10**9, 1_500_000])
def test_a_part_of_another_total_is_not_appended(
    refusal: Callable, server: ArchiveServer, tmp_path: Path, total: int
) -> None:
    server.cuts, server.total = [1_000_000], total
    refusal(pauses_seconds=(0,))
    assert left_in(tmp_path) == set()


def test_a_silent_connection_is_closed_and_the_download_continued(
    fetched: Download, server: ArchiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_resume, "TIMEOUT_SECONDS", 0.2)
    server.cuts, server.stall_seconds = [1_000_000], 1.0
    assert open_checkpoint(fetched())
    assert len(server.ranges) == 2


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_request_is_repeated_after_a_server_error(
    fetched: Download, server: ArchiveServer, status: int
) -> None:
    server.statuses = [status]
    assert open_checkpoint(fetched())


def test_a_server_that_always_fails_is_reported(
    refusal: Callable, server: ArchiveServer, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    server.statuses, server.for_good = [500], True
    line = refusal()
    assert f"{server.address}/datasets/{NAME}.zip" in line
    assert "status 500 (3 tries without progress)" in line
    assert len(server.ranges) == 3
    assert left_in(tmp_path) == set()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("status", [404, 403, 410])
def test_a_missing_archive_is_requested_once(
    refusal: Callable, server: ArchiveServer, tmp_path: Path, status: int
) -> None:
    server.statuses = [status]
    assert f"status {status}" in refusal()
    assert len(server.ranges) == 1
    assert left_in(tmp_path) == set()


def test_an_unreachable_server_is_reported(refusal: Callable) -> None:
    assert "cannot be reached" in refusal(base_url="http://127.0.0.1:9")


@pytest.mark.parametrize("address", ["file:///etc", "http://", "http://[", "http://host:port", ""])
def test_an_invalid_address_is_refused(refusal: Callable, address: str) -> None:
    assert "base URL" in refusal(InputError, base_url=address)


def test_a_content_length_beyond_the_file_is_refused(
    refusal: Callable, server: ArchiveServer, archive: bytes
) -> None:
    server.length = len(archive) + 10
    assert f"after {len(archive)} of {len(archive) + 10} bytes" in refusal(pauses_seconds=())
    refusal()


def test_a_content_length_short_of_the_file_is_refused(
    refusal: Callable, server: ArchiveServer, archive: bytes, tmp_path: Path
) -> None:
    server.length = len(archive) - 10
    assert "not a whole zip archive" in refusal()
    assert left_in(tmp_path) == set()


def test_a_server_that_states_no_length_is_refused(
    refusal: Callable, server: ArchiveServer
) -> None:
    server.states_length = False
    assert "expected a file of a stated length" in refusal()


def test_a_log_in_page_does_not_replace_the_part(
    fetched: Download, refusal: Callable, server: ArchiveServer, archive: bytes, tmp_path: Path
) -> None:
    server.cuts = [1_000_000]
    refusal(pauses_seconds=())
    server.content, server.etag = b"<html>Please log in.</html>", '"page"'
    assert "expected a zip archive" in refusal()
    server.content, server.etag = archive, '"first"'
    fetched()
    assert server.ranges[-1] == "bytes=1000000-"


def test_a_part_is_written_by_one_process_at_a_time(
    fetched: Download, refusal: Callable, server: ArchiveServer
) -> None:
    server.seconds = 0.02
    first = threading.Thread(target=fetched)
    first.start()
    while not server.sent_bytes:
        time.sleep(0.01)
    assert "another process" in refusal(PackageError)
    server.seconds = 0
    first.join()


# --- damaged and hostile archives ----------------------------------------------------------------


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
def test_a_damaged_archive_is_refused_and_downloaded_anew(
    fetched: Download,
    refusal: Callable,
    server: ArchiveServer,
    archive: bytes,
    tmp_path: Path,
    place: float,
) -> None:
    at = int(place * len(archive))
    server.content = archive[:at] + bytes([archive[at] ^ 0xFF]) + archive[at + 1 :]
    assert "'llava-fastvithd_0.5b_stage3/model.safetensors' in it is damaged" in refusal()
    assert left_in(tmp_path) == set()
    server.content = archive
    assert open_checkpoint(fetched())


def test_an_archive_without_a_checkpoint_is_refused(
    refusal: Callable, server: ArchiveServer, tmp_path: Path
) -> None:
    server.content = zip_of({f"{NAME}/config.json": b"{}"})
    assert "no whole checkpoint" in refusal()
    assert left_in(tmp_path) == set()


# --- disks and destinations ----------------------------------------------------------------------


def test_a_full_disk_is_noticed_before_the_download(
    refusal: Callable, server: ArchiveServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(10**9, 0, 10_000_000))
    assert "10 MB are free" in refusal(PackageError)
    assert left_in(tmp_path) == set()
    assert len(server.ranges) == 1


def test_a_disk_too_full_to_unpack_keeps_the_part(
    fetched: Download,
    refusal: Callable,
    server: ArchiveServer,
    archive: bytes,
    monkeypatch: pytest.MonkeyPatch,
    demo_checkpoint: Path,
) -> None:
    # The disk has room for twice the archive, and not for the unpacked files.
    files = {f"{NAME}/{p.name}": p.read_bytes() for p in demo_checkpoint.iterdir()}
    server.content = zip_of(files | {f"{NAME}/zeros": bytes(30_000_000)})
    free = 2 * len(server.content)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: Usage(10**9, 0, free))
        assert "MB are free" in refusal(PackageError)
    fetched()
    assert len(server.ranges) == 1


def test_a_destination_with_other_files_is_never_replaced(
    fetched: Download, server: ArchiveServer, tmp_path: Path
) -> None:
    destination = tmp_path / NAME
    destination.mkdir()
    (destination / "notes.txt").write_text("mine")
    with pytest.raises(PackageError, match="is not replaced"):
        fetched()
    shutil.rmtree(destination)
    destination.write_text("mine")
    with pytest.raises(PackageError, match="is not replaced"):
        fetched()
    destination.unlink()
    destination.symlink_to(tmp_path / "nowhere")
    with pytest.raises(PackageError, match="is not replaced"):
        fetched()
    assert left_in(tmp_path) == {NAME}
    assert server.ranges == []


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path, server: ArchiveServer) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PackageError, match="could not be written"):
        download_checkpoint("0.5b", 3, tmp_path / "file" / NAME, base_url=server.address)


@pytest.mark.parametrize(("size", "stage"), [("3b", 3), ("0.5b", 1), ("../x", 2)])
def test_only_apple_s_six_checkpoints_can_be_downloaded(
    tmp_path: Path, size: str, stage: int
) -> None:
    with pytest.raises(InputError, match="expected"):
        download_checkpoint(size, stage, tmp_path / NAME)


# --- the command ---------------------------------------------------------------------------------


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
