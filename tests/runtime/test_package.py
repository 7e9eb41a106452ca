"""Reading a package is strict: whatever is wrong with it is named before anything is computed."""

from collections.abc import Callable
from pathlib import Path

import pytest

import fastvlm_onnx
from fastvlm_onnx import PackageError
from fastvlm_onnx.package import read_manifest

Edit = Callable[[Path, Callable[[dict], object]], None]


def refusal(folder: Path) -> str:
    with pytest.raises(PackageError) as caught:
        fastvlm_onnx.load(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "absent")


def test_a_folder_without_a_manifest_may_be_a_checkpoint(tmp_path: Path) -> None:
    assert f"fastvlm-onnx export {tmp_path}" in refusal(tmp_path)


@pytest.mark.parametrize("text", ["{", "", '"text"', "[]", "\x00"])
def test_a_manifest_that_is_no_object(tmp_path: Path, text: str) -> None:
    (tmp_path / "fastvlm.json").write_text(text)
    assert "fastvlm.json" in refusal(tmp_path)


CHANGES = {
    "format_version is 3": lambda m: m.update(format_version=3),
    "format_version is None": lambda m: m.pop("format_version"),
    "decoder.head_dim is missing": lambda m: m["decoder"].pop("head_dim"),
    'decoder.head_dim is "32", expected a number': lambda m: m["decoder"].update(head_dim="32"),
    "decoder.head_dim is true, expected a number": lambda m: m["decoder"].update(head_dim=True),
    "decoder.head_dim is -1, expected a number >= 0": lambda m: m["decoder"].update(head_dim=-1),
    "decoder.eos_token_ids is 3, expected a list": lambda m: m["decoder"].update(eos_token_ids=3),
    "decoder.eos_token_ids.0 is": lambda m: m["decoder"].update(eos_token_ids=["x"]),
    "image is [], expected an object": lambda m: m.update(image=[]),
    "prompt.system is null, expected a text": lambda m: m["prompt"].update(system=None),
    "variants is empty": lambda m: m.update(variants={}),
    "variants.fp32.vision_encoder is empty": lambda m: m["variants"]["fp32"].update(
        vision_encoder={}
    ),
    "variants.fp32.decoder names 'x.onnx'": lambda m: m["variants"]["fp32"].update(
        decoder="x.onnx"
    ),
    "files.../secret leaves the package's folder": lambda m: m["files"].update(
        {"../secret": {"bytes": 1, "sha256": ""}}
    ),
    "files./etc/passwd leaves the package's folder": lambda m: m["files"].update(
        {"/etc/passwd": {"bytes": 1, "sha256": ""}}
    ),
    "files.C:x leaves the package's folder": lambda m: m["files"].update(
        {"C:x": {"bytes": 1, "sha256": ""}}
    ),
}


@pytest.mark.parametrize("found", CHANGES)
def test_a_manifest_that_breaks_a_rule(copied_package: Path, edit_json: Edit, found: str) -> None:
    edit_json(copied_package / "fastvlm.json", CHANGES[found])
    assert found in refusal(copied_package)


NEEDED = [
    "vision_encoder.256.fp32.onnx",
    "vision_encoder.fp32.onnx.data",
    "projector.fp32.onnx",
    "projector.fp32.onnx.data",
    "decoder.fp32.onnx",
    "decoder.fp32.onnx.data",
    "embed_tokens.npy",
    "tokenizer.json",
]


def test_the_files_a_variant_needs_are_known(package: Path) -> None:
    assert sorted(read_manifest(package).files_of("fp32", 256)) == sorted(NEEDED)


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_file(copied_package: Path, name: str) -> None:
    (copied_package / name).unlink()
    assert f"{name}: missing" in refusal(copied_package)


@pytest.mark.parametrize("name", NEEDED)
def test_a_cut_file(copied_package: Path, name: str) -> None:
    path = copied_package / name
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - 1)
    assert f"{name}: found {size - 1:,} bytes, expected {size:,}" in refusal(copied_package)


@pytest.mark.parametrize("name", NEEDED)
def test_an_altered_file(copied_package: Path, name: str) -> None:
    path = copied_package / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert f"{name}: sha256 is" in refusal(copied_package)


def test_an_unreadable_graph_is_named(copied_package: Path, edit_json: Edit) -> None:
    # Its hash is right, so only ONNX Runtime can tell.
    from fastvlm_onnx.package_files import describe_file

    path = copied_package / "decoder.fp32.onnx"
    path.write_bytes(b"not a graph")
    entry = describe_file(path)
    edit_json(
        copied_package / "fastvlm.json",
        lambda m: m["files"].update({path.name: {"bytes": entry.bytes, "sha256": entry.sha256}}),
    )
    assert "decoder.fp32.onnx: ONNX Runtime" in refusal(copied_package)


def test_a_manifest_survives_reading_and_writing(package: Path, tmp_path: Path) -> None:
    read_manifest(package).write(tmp_path)
    assert (tmp_path / "fastvlm.json").read_text() == (package / "fastvlm.json").read_text()
