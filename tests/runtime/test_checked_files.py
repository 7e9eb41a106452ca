"""Weights that were checked once are not read again, and any change of them is found."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import refusal

import fastvlm_onnx
from fastvlm_onnx import PackageError, checked_files, package_files
from fastvlm_onnx.checked_files import MEMORY_FILE, file_identity, remember_checked
from fastvlm_onnx.package import read_manifest
from fastvlm_onnx.runtime.ort.compiled_cache import Record, is_whole, size_and_crc

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows does not tell when a file was last changed"
)
WEIGHTS = "decoder.fp32.onnx.data"


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as unchanged for long; the tests have just written them."""
    monkeypatch.setattr(checked_files, "SETTLED_SECONDS", -3600)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are hashed from now on."""
    names: list[str] = []

    def noting(path: Path) -> str:
        names.append(path.name)
        return sha256_of(path)

    sha256_of = package_files.sha256_of
    monkeypatch.setattr(package_files, "sha256_of", noting)
    return names


def memory(user_folder: Path) -> Path:
    return user_folder / "cache" / MEMORY_FILE


def weights_of(names: list[str]) -> list[str]:
    return sorted({name for name in names if name.endswith((".data", ".npy"))})


def test_a_second_load_reads_no_weights_again(copied_package: Path, hashed: list[str]) -> None:
    fastvlm_onnx.load(copied_package, precision="fp32")
    assert WEIGHTS in weights_of(hashed)
    hashed.clear()
    fastvlm_onnx.load(copied_package, precision="fp32")
    assert weights_of(hashed) == []


def test_a_copy_elsewhere_is_read(copied_package: Path, tmp_path: Path, hashed: list[str]) -> None:
    fastvlm_onnx.load(copied_package, precision="fp32")
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in copied_package.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    hashed.clear()
    fastvlm_onnx.load(copy, precision="fp32")
    assert WEIGHTS in weights_of(hashed)


def damaged(path: Path) -> bytes:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    return bytes(content)


def write_in_place(path: Path) -> None:
    path.write_bytes(damaged(path))


def replace(path: Path) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(damaged(path))
    new.replace(path)


@pytest.mark.parametrize("change", [write_in_place, replace])
def test_a_change_that_keeps_size_and_time_is_found(
    copied_package: Path, change: Callable[[Path], None]
) -> None:
    fastvlm_onnx.load(copied_package, precision="fp32")
    path = copied_package / WEIGHTS
    before = path.stat()
    change(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    with pytest.raises(PackageError, match=f"{WEIGHTS}: sha256 is .* the file was altered"):
        fastvlm_onnx.load(copied_package, precision="fp32")


def test_another_manifest_makes_the_weights_read(
    copied_package: Path, edit_json: Callable[..., None]
) -> None:
    fastvlm_onnx.load(copied_package, precision="fp32")
    edit_json(
        copied_package / "fastvlm.json",
        lambda manifest: manifest["files"][WEIGHTS].update(sha256="0" * 64),
    )
    with pytest.raises(PackageError, match=f"{WEIGHTS}: sha256 is .*, expected 000000000000"):
        fastvlm_onnx.load(copied_package, precision="fp32")


def test_altered_weights_are_not_remembered(copied_package: Path, user_folder: Path) -> None:
    write_in_place(copied_package / WEIGHTS)
    for _ in range(2):
        with pytest.raises(PackageError, match="the file was altered"):
            fastvlm_onnx.load(copied_package, precision="fp32")
    assert not memory(user_folder).exists()


def test_a_file_that_changed_a_moment_ago_is_not_remembered(
    copied_package: Path, user_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked_files, "SETTLED_SECONDS", 3600)
    fastvlm_onnx.load(copied_package, precision="fp32")
    assert file_identity(copied_package / WEIGHTS) is None
    assert not memory(user_folder).exists()


def test_no_file_is_remembered_on_windows(
    copied_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There the system does not tell when a file was last changed: a fake `sys.platform`."""
    with monkeypatch.context() as faked:
        faked.setattr(sys, "platform", "win32")
        assert file_identity(copied_package / WEIGHTS) is None
    assert file_identity(copied_package / WEIGHTS)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[1, 2]", "3", "\x00\xff", '{"a": 1, "b": {}}', "[" * 200_000],
    ids=["empty", "cut", "list", "number", "bytes", "other values", "nested"],
)
def test_a_damaged_memory_is_made_anew(
    copied_package: Path, user_folder: Path, hashed: list[str], content: str
) -> None:
    memory(user_folder).parent.mkdir()
    memory(user_folder).write_text(content, encoding="latin-1")
    fastvlm_onnx.load(copied_package, precision="fp32")
    assert WEIGHTS in hashed
    hashed.clear()
    fastvlm_onnx.load(copied_package, precision="fp32")
    assert weights_of(hashed) == []


def test_a_memory_that_cannot_be_written_stops_nothing(
    copied_package: Path, user_folder: Path, hashed: list[str]
) -> None:
    (user_folder / "cache").write_text("a file where a folder belongs")
    for _ in range(2):
        hashed.clear()
        fastvlm_onnx.load(copied_package, precision="fp32")
        assert WEIGHTS in hashed


def test_inspect_reads_remembered_files_too(copied_package: Path) -> None:
    path = copied_package / WEIGHTS
    write_in_place(path)
    identity = file_identity(path)
    assert identity is not None
    remember_checked({identity: read_manifest(copied_package).files[WEIGHTS].sha256})
    fastvlm_onnx.load(copied_package, precision="fp32")
    assert f"{WEIGHTS}: sha256 is" in refusal("inspect", copied_package)


def test_the_memory_keeps_the_last_files(user_folder: Path) -> None:
    for first in range(0, 1500, 500):
        remember_checked({str(number): "x" for number in range(first, first + 500)})
    kept = json.loads(memory(user_folder).read_text())
    assert list(kept) == [str(number) for number in range(500, 1500)]
    assert [path.name for path in memory(user_folder).parent.iterdir()] == [MEMORY_FILE]


def test_a_change_of_a_compiled_graph_is_found(tmp_path: Path, user_folder: Path) -> None:
    file = tmp_path / "graph.bin"
    file.write_bytes(bytes(1000))
    record = Record("graph.onnx", "openvino", "1", {}, {file.name: size_and_crc(file)})
    assert is_whole(tmp_path, record)
    assert len(json.loads(memory(user_folder).read_text())) == 1
    assert is_whole(tmp_path, record)
    before = file.stat()
    write_in_place(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not is_whole(tmp_path, record)
