"""Damaged and hostile zips: they give their files, or one error line and no file."""

import os
import shutil
import stat
import zipfile
from pathlib import Path

import pytest
from apple_archive import NAME, files_of, left_in, zip_of

from fastvlm_onnx import CheckpointError, PackageError
from fastvlm_onnx.export.pipeline import export_package
from fastvlm_onnx.export.sources.archive import unpack_checkpoint
from fastvlm_onnx.export.sources.open_checkpoint import open_checkpoint


def test_the_folder_of_an_unpacked_zip_is_removed_with_its_checkpoint(
    archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    (tmp_path / "model.zip").write_bytes(archive)
    checkpoint = open_checkpoint(tmp_path / "model.zip")
    assert len(left_in(temporary)) == 1
    del checkpoint
    assert left_in(temporary) == set()


def link(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.create_system = 3
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


HOSTILE = {
    "absolute": ("/etc/cron.d/job", "leads out"),
    "parent": (f"{NAME}/../../job", "leads out"),
    "parent alone": ("..", "leads out"),
    "drive": ("C:/job", "not the same everywhere"),
    "backslashes": ("..\\..\\job", "not the same everywhere"),
    "nul": ("job\0.txt", "not the same everywhere"),
    "folder with content": (f"{NAME}/folder/", "is a folder with content"),
    "link": (link(f"{NAME}/link"), "is a link or device"),
}


@pytest.mark.parametrize(("name", "words"), HOSTILE.values(), ids=HOSTILE)
def test_an_entry_that_would_leave_the_folder_is_refused(
    tmp_path: Path, name: str | zipfile.ZipInfo, words: str
) -> None:
    path = tmp_path / "in" / "hostile.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr(f"{NAME}/config.json", b"{}")
        entry = zipfile.ZipInfo("x") if isinstance(name, str) else name
        if isinstance(name, str):
            entry.filename = name  # the constructor would cut the name at a NUL
        zipped.writestr(entry, b"/etc/passwd")
    with pytest.raises(CheckpointError, match=words) as caught:
        unpack_checkpoint(path, tmp_path / "in" / "folder")
    assert "\n" not in str(caught.value)
    assert left_in(path.parent) == {"hostile.zip"}
    assert left_in(tmp_path) == {"in"}


@pytest.mark.parametrize(
    "names", [("a/x", "a/X"), ("a/x", "a/./x"), ("a/x", "a/x/y")], ids=["case", "dot", "folder"]
)
def test_two_entries_of_one_name_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    path = tmp_path / "doubled.zip"
    path.write_bytes(zip_of(dict.fromkeys(names, b"")))
    with pytest.raises(CheckpointError, match="two of its entries"):
        unpack_checkpoint(path, tmp_path / "folder")


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    path.write_bytes(zip_of({"a/model.safetensors": bytes(50_000_000)}))
    with pytest.raises(CheckpointError, match="more than 20 times its size"):
        unpack_checkpoint(path, tmp_path / "folder")
    assert left_in(tmp_path) == {"bomb.zip"}


def test_an_entry_longer_than_its_stated_size_is_refused(tmp_path: Path) -> None:
    content = zip_of({"a/zeros": bytes(50_000_000)})
    path = tmp_path / "lying.zip"
    path.write_bytes(content.replace((50_000_000).to_bytes(4, "little"), bytes([1, 0, 0, 0])))
    with pytest.raises(CheckpointError, match="is damaged"):
        unpack_checkpoint(path, tmp_path / "folder")


def test_a_zip_damaged_anywhere_gives_its_files_or_one_line(tmp_path: Path) -> None:
    files = {f"a/{name}": os.urandom(20) for name in ("config.json", "vocab.json")}
    whole = zip_of(files)
    path = tmp_path / "damaged.zip"
    for at in range(len(whole)):
        for byte in (0, 0xFF, whole[at] ^ 1):
            path.write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
            folder = tmp_path / f"{at}-{byte}"
            line = ""
            try:
                unpack_checkpoint(path, folder)
            except (CheckpointError, PackageError) as error:
                line = str(error)
            assert "\n" not in line
            assert line or sorted(files_of(folder).values()) == sorted(files.values())
            shutil.rmtree(folder, ignore_errors=True)


def test_export_refuses_a_zip_without_a_checkpoint(tmp_path: Path, archive: bytes) -> None:
    path = tmp_path / "model.zip"
    for content in (b"", b"no zip", archive[:-100], zip_of({}), zip_of({"notes.txt": b""})):
        path.write_bytes(content)
        with pytest.raises(CheckpointError):
            export_package(path, tmp_path / "out")
    assert left_in(tmp_path) == {"model.zip"}
