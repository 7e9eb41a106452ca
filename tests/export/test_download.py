"""Downloads of Apple's archives: whole checkpoints, damaged archives, disks and destinations."""

import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
from apple_archive import NAME, files_of, left_in, zip_of
from archive_server import ArchiveServer

from fastvlm_onnx import InputError, PackageError
from fastvlm_onnx.export.pipeline import export_package
from fastvlm_onnx.export.sources import apple_zoo
from fastvlm_onnx.export.sources.apple_zoo import (
    download_checkpoint,
    find_or_download_checkpoint,
)
from fastvlm_onnx.export.sources.open_checkpoint import open_checkpoint

Download = Callable[..., Path]
Usage = namedtuple("Usage", "total used free")


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
    assert (out, err) == ("", "")  # a library prints nothing


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


# --- damaged and hostile archives ----------------------------------------------------------------


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
def test_a_damaged_archive_is_refused_and_downloaded_anew(
    fetched: Download,
    refused_download: Callable,
    server: ArchiveServer,
    archive: bytes,
    tmp_path: Path,
    place: float,
) -> None:
    at = int(place * len(archive))
    server.content = archive[:at] + bytes([archive[at] ^ 0xFF]) + archive[at + 1 :]
    assert "'llava-fastvithd_0.5b_stage3/model.safetensors' in it is damaged" in refused_download()
    assert left_in(tmp_path) == set()
    server.content = archive
    assert open_checkpoint(fetched())


def test_an_archive_without_a_checkpoint_is_refused(
    refused_download: Callable, server: ArchiveServer, tmp_path: Path
) -> None:
    server.content = zip_of({f"{NAME}/config.json": b"{}"})
    assert "no whole checkpoint" in refused_download()
    assert left_in(tmp_path) == set()


# --- disks and destinations ----------------------------------------------------------------------


def test_a_full_disk_is_noticed_before_the_download(
    refused_download: Callable,
    server: ArchiveServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(10**9, 0, 10_000_000))
    assert "10 MB are free" in refused_download(PackageError)
    assert left_in(tmp_path) == set()
    assert len(server.ranges) == 1


def test_a_disk_too_full_to_unpack_keeps_the_part(
    fetched: Download,
    refused_download: Callable,
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
        assert "MB are free" in refused_download(PackageError)
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
