"""A package from a stranger: what it names, holds and links to is refused before it is used."""

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastvlm_onnx
from fastvlm_onnx import PackageError
from fastvlm_onnx.package import LARGEST_MANIFEST
from fastvlm_onnx.package_files import describe_file
from fastvlm_onnx.runtime.ort.graph_file import check_graph, references
from fastvlm_onnx.tokenizer_format import LARGEST_VOCABULARY

Edit = Callable[[Path, Callable[[dict], object]], None]
Change = Callable[[str, Callable[[Path], object]], None]


def refusal(folder: Path) -> str:
    with pytest.raises(PackageError) as caught:
        fastvlm_onnx.load(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400 + len(str(folder))
    return message


@pytest.fixture
def change(copied_package: Path, edit_json: Edit) -> Change:
    """Change a file of the package, and describe it truly in the manifest, as its maker can."""

    def change(name: str, edit: Callable[[Path], object]) -> None:
        path = copied_package / name
        edit(path)
        entry = describe_file(path)
        edit_json(
            copied_package / "fastvlm.json",
            lambda m: m["files"].update({name: {"bytes": entry.bytes, "sha256": entry.sha256}}),
        )

    return change


# --- graphs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret", "fastvlm.json", "*/_ORT_MEM_ADDR_/*"])
def test_a_graph_may_read_only_its_own_weights(
    change: Change, copied_package: Path, name: str
) -> None:
    def point_elsewhere(path: Path) -> None:
        old, new = b"decoder.fp32.onnx.data", name.encode()
        # ONNX Runtime takes "./" before a name; the length of the field stays.
        new = new + b"/." * ((len(old) - len(new)) // 2) if len(new) < len(old) else new
        content = path.read_bytes()
        assert old in content
        path.write_bytes(content.replace(old, new.ljust(len(old), b"/")))

    change("decoder.fp32.onnx", point_elsewhere)
    message = refusal(copied_package)
    assert f"decoder.fp32.onnx: reads the file {name[:18]!r}"[:-1] in message
    assert "do not trust this package" in message


def field(number: int, content: bytes) -> bytes:
    """A field of a protobuf message, of at most 127 bytes."""
    assert len(content) < 128
    tag = number << 3 | 2
    head = bytes([tag]) if tag < 128 else bytes([tag & 127 | 128, tag >> 7])
    return head + bytes([len(content)]) + content


def external(name: str) -> bytes:
    return field(13, field(1, b"location") + field(2, name.encode()))


def test_weights_that_end_too_early(change: Change, copied_package: Path) -> None:
    change("projector.fp32.onnx.data", lambda path: path.write_bytes(path.read_bytes()[:-1000]))
    message = refusal(copied_package)
    assert "projector.fp32.onnx" in message
    assert ".cc:" not in message  # ONNX Runtime names lines of its source


PLACES = {
    "an initializer": lambda tensor: field(7, field(5, tensor)),
    "a sparse initializer": lambda tensor: field(7, field(15, field(1, tensor))),
    "an attribute": lambda tensor: field(7, field(1, field(5, field(5, tensor)))),
    "a subgraph": lambda tensor: field(7, field(1, field(5, field(6, field(5, tensor))))),
    "a function": lambda tensor: field(25, field(7, field(5, field(10, tensor)))),
    "training": lambda tensor: field(20, field(2, field(5, tensor))),
}


@pytest.mark.parametrize("place", PLACES)
def test_every_place_of_a_tensor_is_searched(tmp_path: Path, place: str) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(PLACES[place](external("secret")))
    assert references(path).files == {"secret"}
    with pytest.raises(PackageError, match="reads the file 'secret'"):
        check_graph(path, ["graph.onnx.data"])
    check_graph(path, ["secret"])


def test_a_compiled_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(field(7, field(1, field(4, b"EPContext"))))
    with pytest.raises(PackageError, match="holds a compiled model"):
        check_graph(path, [])


NO_GRAPHS = {
    "empty": b"",
    "cut": field(7, field(5, external("secret")))[:-1],
    "a number without an end": b"\xff" * 30,
    "a kind that protobuf has no more": b"\x0b",
    "nested": b"",  # filled in below
}


@pytest.mark.parametrize("kind", NO_GRAPHS)
def test_a_file_that_is_no_graph(tmp_path: Path, kind: str) -> None:
    content = NO_GRAPHS[kind]
    if kind == "nested":
        for _ in range(20):
            content = b"\x32" + length(content) + content  # a graph in an attribute
            content = b"\x2a" + length(content) + content
            content = b"\x0a" + length(content) + content
        content = b"\x3a" + length(content) + content
    path = tmp_path / "graph.onnx"
    path.write_bytes(content)
    with pytest.raises(PackageError, match="not an ONNX graph"):
        check_graph(path, [])


def length(content: bytes) -> bytes:
    size = len(content)
    return bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])


# --- files that are none -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fastvlm.json", "decoder.fp32.onnx", "embed_tokens.npy"])
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFO in folders")
def test_a_fifo_does_not_block(copied_package: Path, name: str) -> None:
    (copied_package / name).unlink()
    os.mkfifo(copied_package / name)
    assert f"{name}: is a FIFO, expected a regular file" in refusal(copied_package)


@pytest.mark.parametrize("name", ["fastvlm.json", "tokenizer.json"])
def test_a_folder_in_place_of_a_file(copied_package: Path, name: str) -> None:
    (copied_package / name).unlink()
    (copied_package / name).mkdir()
    assert f"{name}: is a folder, expected a regular file" in refusal(copied_package)


def test_a_link_out_of_the_folder_is_refused(copied_package: Path, tmp_path: Path) -> None:
    inside, outside = copied_package / "decoder.fp32.onnx.data", tmp_path / "outside"
    inside.rename(outside)
    inside.symlink_to(outside)
    assert f"is a link to {outside.resolve()}, outside the package" in refusal(copied_package)


def test_a_link_to_the_blobs_of_a_hub_s_cache_is_followed(package: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots/0123"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(package.iterdir())):
        (blobs / str(number)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    with fastvlm_onnx.load(snapshot) as model:
        assert model.precision in ("fp32", "fast", "int8", "int4")


# --- arrays --------------------------------------------------------------------------------------


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode().ljust(118 - 1) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def as_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (0,)}"))


ARRAYS: dict[str, Callable[[Path], object]] = {
    "pickled": lambda path: np.save(path, np.array([{}], object), allow_pickle=True),
    "an archive": as_archive,
    "longer than its header says": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "shorter": lambda path: path.write_bytes(
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (739, 128)}")
    ),
    "of a huge shape": lambda path: path.write_bytes(
        npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**40}, 2)}}")
    ),
    "a header that is no literal": lambda path: path.write_bytes(npy("__import__('os')")),
    "a deep header": lambda path: path.write_bytes(
        b"\x93NUMPY\x01\x00" + (9000).to_bytes(2, "little") + b"(" * 9000
    ),
    "a header without an end": lambda path: path.write_bytes(
        b"\x93NUMPY\x02\x00" + (2**31).to_bytes(4, "little")
    ),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_an_array_that_is_not_as_described(change: Change, copied_package: Path, kind: str) -> None:
    change("embed_tokens.npy", ARRAYS[kind])
    assert "embed_tokens.npy: " in refusal(copied_package)


# --- JSON ----------------------------------------------------------------------------------------

MANIFESTS: dict[str, tuple[bytes, str]] = {
    "a list in 100,000 lists": (b"[" * 10**5 + b"]" * 10**5, "nested too deeply"),
    "a number of a million digits": (
        b'{"format_version": ' + b"9" * 10**6 + b"}",
        "integer string",
    ),
    "a number beyond float": (b'{"a": 1e999}', "the number 1e999 is too large"),
    "NaN": (b'{"a": NaN}', "NaN is no JSON number"),
    "a key twice": (b'{"a": 1, "b": 1, "a": 2}', "the key 'a' is there twice"),
    "a byte order mark": (b'\xef\xbb\xbf{"a": 1}', "BOM"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "utf-8"),
    "5 MB": (b'{"a": "' + b"a" * LARGEST_MANIFEST + b'"}', "expected at most 4,000,000"),
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_manifest_that_is_no_plain_json(tmp_path: Path, kind: str) -> None:
    content, words = MANIFESTS[kind]
    (tmp_path / "fastvlm.json").write_bytes(content)
    assert words in refusal(tmp_path)


# --- tokenizer.json ------------------------------------------------------------------------------


def _nested(content: dict[str, Any]) -> None:
    normalizer = content["normalizer"]
    for _ in range(60):
        normalizer = {"type": "Sequence", "normalizers": [normalizer]}
    content["normalizer"] = normalizer


TOKENIZERS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another model": (lambda t: t["model"].update(type="Unigram"), "model.type is 'Unigram'"),
    "no model": (lambda t: t.update(model=None), "model.type is None"),
    "a huge id": (lambda t: t["model"]["vocab"].update(x=2**31), "model.vocab['x'] is 2147483648"),
    "a negative id": (lambda t: t["model"]["vocab"].update(x=-1), "model.vocab['x'] is -1"),
    "true for an id": (lambda t: t["model"]["vocab"].update(x=True), "model.vocab['x'] is True"),
    "a long token": (lambda t: t["model"]["vocab"].update({"x" * 2000: 5}), "1,000 characters"),
    "an unknown merge": (lambda t: t["model"]["merges"].append(["!", "Ω"]), "without 'Ω'"),
    "a merge of three": (lambda t: t["model"]["merges"].append(["!", "!", "!"]), "a merge is"),
    "another expression": (
        lambda t: t["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": "(a+)+$"}),
        "pre_tokenizer.Split.pattern is a dict",
    ),
    "a deep normalizer": (_nested, "normalizer is a dict, expected NFC"),
    "a truncation": (
        lambda t: t.update(truncation={"max_length": 4, "stride": 0, "strategy": "LongestFirst"}),
        "truncation is a dict, expected None",
    ),
    "a huge added id": (
        lambda t: t["added_tokens"][0].update(id=LARGEST_VOCABULARY),
        "an added token is a dict",
    ),
    "an empty added token": (lambda t: t["added_tokens"][0].update(content=""), "is '', expected"),
    "a dropout": (lambda t: t["model"].update(dropout=0.5), "model.dropout is 0.5"),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_tokenizer_of_another_kind_never_reaches_its_library(
    change: Change, edit_json: Edit, copied_package: Path, kind: str
) -> None:
    edit, words = TOKENIZERS[kind]
    change("tokenizer.json", lambda path: edit_json(path, edit))
    message = refusal(copied_package)
    assert words in message
    assert json.dumps("not a tokenizer (")[1:-1] in message
