"""Downloads over failing networks and from failing servers: a part is never taken for whole."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from apple_archive import NAME, PART, files_of, left_in, zip_of
from archive_server import ArchiveServer

from fastvlm_onnx import InputError, PackageError
from fastvlm_onnx.export.sources import http_resume
from fastvlm_onnx.export.sources.open_checkpoint import open_checkpoint

Download = Callable[..., Path]


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
    fetched: Download,
    refused_download: Callable,
    server: ArchiveServer,
    tmp_path: Path,
    archive: bytes,
) -> None:
    server.cuts = [1_000_000]
    assert "continues the download" in refused_download(pauses_seconds=())
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
    refused_download: Callable, server: ArchiveServer
) -> None:
    server.cuts, server.ignores_ranges, server.for_good = [1_000_000], True, True
    assert "the connection ended after 1000000 of" in refused_download()
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
    refused_download: Callable,
    server: ArchiveServer,
    demo_checkpoint: Path,
    ignores_if_range: bool,
) -> None:
    server.cuts = [1_000_000]
    refused_download(pauses_seconds=())
    files = {f"{NAME}/{p.name}": p.read_bytes() for p in reversed(list(demo_checkpoint.iterdir()))}
    server.content, server.etag = zip_of(files | {f"{NAME}/new.txt": b"new"}), '"second"'
    server.ignores_if_range = ignores_if_range
    assert files_of(fetched())["new.txt"] == b"new"


def test_a_file_that_changed_at_the_same_length_is_downloaded_anew(
    fetched: Download, refused_download: Callable, server: ArchiveServer, demo_checkpoint: Path
) -> None:
    files = {f"{NAME}/{p.name}": p.read_bytes() for p in demo_checkpoint.iterdir()}
    first, second = (zip_of({f"{NAME}/a.txt": text} | files) for text in (b"old", b"new"))
    assert len(first) == len(second)
    server.content, server.cuts = first, [1_000_000]
    refused_download(pauses_seconds=())
    server.content, server.etag, server.ignores_if_range = second, '"second"', True
    assert files_of(fetched())["a.txt"] == b"new"


def test_a_file_that_became_shorter_is_downloaded_anew(
    fetched: Download, refused_download: Callable, server: ArchiveServer, archive: bytes
) -> None:
    server.content, server.cuts = archive + bytes(1000), [len(archive) + 500]
    refused_download(pauses_seconds=())
    server.content, server.ignores_if_range = archive, True
    assert open_checkpoint(fetched())


@pytest.mark.parametrize("total", [10**9, 1_500_000])
def test_a_part_of_another_total_is_not_appended(
    refused_download: Callable, server: ArchiveServer, tmp_path: Path, total: int
) -> None:
    server.cuts, server.total = [1_000_000], total
    refused_download(pauses_seconds=(0,))
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
    refused_download: Callable, server: ArchiveServer, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    server.statuses, server.for_good = [500], True
    line = refused_download()
    assert f"{server.address}/datasets/{NAME}.zip" in line
    assert "status 500 (3 tries without progress)" in line
    assert len(server.ranges) == 3
    assert left_in(tmp_path) == set()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("status", [404, 403, 410])
def test_a_missing_archive_is_requested_once(
    refused_download: Callable, server: ArchiveServer, tmp_path: Path, status: int
) -> None:
    server.statuses = [status]
    assert f"status {status}" in refused_download()
    assert len(server.ranges) == 1
    assert left_in(tmp_path) == set()


def test_an_unreachable_server_is_reported(refused_download: Callable) -> None:
    assert "cannot be reached" in refused_download(base_url="http://127.0.0.1:9")


@pytest.mark.parametrize("address", ["file:///etc", "http://", "http://[", "http://host:port", ""])
def test_an_invalid_address_is_refused(refused_download: Callable, address: str) -> None:
    assert "base URL" in refused_download(InputError, base_url=address)


def test_a_content_length_beyond_the_file_is_refused(
    refused_download: Callable, server: ArchiveServer, archive: bytes
) -> None:
    server.length = len(archive) + 10
    assert f"after {len(archive)} of {len(archive) + 10} bytes" in refused_download(
        pauses_seconds=()
    )
    refused_download()


def test_a_content_length_short_of_the_file_is_refused(
    refused_download: Callable, server: ArchiveServer, archive: bytes, tmp_path: Path
) -> None:
    server.length = len(archive) - 10
    assert "not a whole zip archive" in refused_download()
    assert left_in(tmp_path) == set()


def test_a_server_that_states_no_length_is_refused(
    refused_download: Callable, server: ArchiveServer
) -> None:
    server.states_length = False
    assert "expected a file of a stated length" in refused_download()


def test_a_log_in_page_does_not_replace_the_part(
    fetched: Download,
    refused_download: Callable,
    server: ArchiveServer,
    archive: bytes,
    tmp_path: Path,
) -> None:
    server.cuts = [1_000_000]
    refused_download(pauses_seconds=())
    server.content, server.etag = b"<html>Please log in.</html>", '"page"'
    assert "expected a zip archive" in refused_download()
    server.content, server.etag = archive, '"first"'
    fetched()
    assert server.ranges[-1] == "bytes=1000000-"


def test_a_part_is_written_by_one_process_at_a_time(
    fetched: Download, refused_download: Callable, server: ArchiveServer
) -> None:
    server.seconds = 0.02
    first = threading.Thread(target=fetched)
    first.start()
    while not server.sent_bytes:
        time.sleep(0.01)
    assert "another process" in refused_download(PackageError)
    server.seconds = 0
    first.join()
