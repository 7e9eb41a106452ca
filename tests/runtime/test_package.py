"""Reading a package: every fault is named before a graph runs, and both formats open."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import run

import fastvlm_onnx
from fastvlm_onnx import PackageError
from fastvlm_onnx.names import DECODER, PREFILL, PROJECTOR
from fastvlm_onnx.package import read_manifest
from fastvlm_onnx.package_files import describe_file

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
    "decoder.context_length is 4194305, expected at most 4194304": lambda m: m["decoder"].update(
        context_length=4194305
    ),
    "image is [], expected an object": lambda m: m.update(image=[]),
    "prompt.system is null, expected a text": lambda m: m["prompt"].update(system=None),
    "variants is empty": lambda m: m.update(variants={}),
    "graphs is missing": lambda m: m.pop("graphs"),
    "graphs.decoder.fp32.onnx.weights is missing": lambda m: m["graphs"]["decoder.fp32.onnx"].pop(
        "weights"
    ),
    "graphs.decoder.fp32.onnx.int8_products is 1, expected true or false": lambda m: m["graphs"][
        "decoder.fp32.onnx"
    ].update(int8_products=1),
    "graphs.decoder.fp32.onnx.onnxruntime is 'new', expected a version": lambda m: m["graphs"][
        "decoder.fp32.onnx"
    ].update(onnxruntime="new"),
    "graphs.decoder.fp32.onnx.weights names 'x.data', which is not": lambda m: m["graphs"][
        "decoder.fp32.onnx"
    ].update(weights=["x.data"]),
    "variants.fp32.prefill names 'decoder.fp32.onnx', which is not among its graphs": lambda m: m[
        "graphs"
    ].pop("decoder.fp32.onnx"),
    "variants.fp32.prefill names '', which is not among its files": lambda m: m["variants"][
        "fp32"
    ].update(prefill=""),
    "variants.fp32.per_provider.cuda.decoder names ''": lambda m: m["variants"]["fp32"].update(
        per_provider={"cuda": {"decoder": ""}}
    ),
    "variants.fp32.per_provider.cuda.decoder names 'x.onnx'": lambda m: m["variants"][
        "fp32"
    ].update(per_provider={"cuda": {"decoder": "x.onnx"}}),
    "variants.fp32.per_provider.cuda is 3, expected an object": lambda m: m["variants"][
        "fp32"
    ].update(per_provider={"cuda": 3}),
    "variants.fp32.split_decoder.lm_head is missing": lambda m: m["variants"]["fp32"].update(
        split_decoder={"decoder_layers": "decoder.fp32.onnx", "lm_head_screen": "x.onnx"}
    ),
    "variants.fp32.split_decoder.lm_head_screen names 'x.onnx'": lambda m: m["variants"][
        "fp32"
    ].update(
        split_decoder={
            "decoder_layers": "decoder.fp32.onnx",
            "lm_head": "decoder.fp32.onnx",
            "lm_head_screen": "x.onnx",
        }
    ),
    "variants.fp32.second_pass.positions is missing": lambda m: m["variants"]["fp32"].update(
        second_pass={"margin": 0.5}
    ),
    "variants.fp32.second_pass.positions is 0, expected 1 to": lambda m: m["variants"][
        "fp32"
    ].update(second_pass={"margin": 0.5, "positions": 0}),
    "variants.fp32.second_pass.margin is true, expected a finite number": lambda m: m["variants"][
        "fp32"
    ].update(second_pass={"margin": True, "positions": 1}),
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
    # The hash is right, so only ONNX Runtime can tell.
    path = copied_package / "decoder.fp32.onnx"
    path.write_bytes(b"\x08\x07")
    entry = describe_file(path)
    edit_json(
        copied_package / "fastvlm.json",
        lambda m: m["files"].update({path.name: {"bytes": entry.bytes, "sha256": entry.sha256}}),
    )
    assert "decoder.fp32.onnx: ONNX Runtime" in refusal(copied_package)


# --- format 2 ------------------------------------------------------------------------------------


def test_unknown_keys_of_every_object_are_ignored(copied_package: Path, edit_json: Edit) -> None:
    expected = read_manifest(copied_package)

    def change(manifest: dict) -> None:
        graph, variant = manifest["graphs"]["decoder.fp32.onnx"], manifest["variants"]["fp32"]
        entry = manifest["files"]["decoder.fp32.onnx"]
        parts = [manifest[name] for name in ("source", "image", "prompt", "decoder")]
        for part in (manifest, *parts, graph, variant, entry):
            part["of_a_later_version"] = {"any": ["thing"]}

    edit_json(copied_package / "fastvlm.json", change)
    assert read_manifest(copied_package) == expected
    fastvlm_onnx.load(copied_package).close()


def test_optional_keys_may_be_missing(copied_package: Path, edit_json: Edit) -> None:
    expected = read_manifest(copied_package)

    def change(manifest: dict) -> None:
        del manifest["measured"], manifest["variants"]["fp32"]["per_provider"]
        del manifest["graphs"]["projector.fp32.onnx"]["cache_dtype"]

    edit_json(copied_package / "fastvlm.json", change)
    assert read_manifest(copied_package) == expected


@pytest.mark.parametrize(("provider", "is_used"), [("cpu", True), ("cuda", False)])
def test_a_graph_of_a_variant_may_be_another_for_one_provider(
    copied_package: Path, edit_json: Edit, provider: str, is_used: bool
) -> None:
    for kind in ("projector", "decoder"):
        path = copied_package / f"{kind}.fp32.onnx"
        path.with_name(f"own.{kind}").write_bytes(path.read_bytes())

    def change(manifest: dict) -> None:
        for table in ("graphs", "files"):
            for kind in ("projector", "decoder"):
                manifest[table][f"own.{kind}"] = manifest[table][f"{kind}.fp32.onnx"]
        own = {"projector": "own.projector", "decoder": "own.decoder"}
        manifest["variants"]["fp32"]["per_provider"] = {provider: own}

    edit_json(copied_package / "fastvlm.json", change)
    with fastvlm_onnx.load(copied_package) as model:
        names = {graph: session.path.name for graph, session in model.sessions.items()}
    assert (names[PROJECTOR] == "own.projector") == is_used
    assert (names[DECODER] == "own.decoder") == is_used
    assert PREFILL not in names  # the provider's own decoder runs the whole prompt too
    needed = read_manifest(copied_package).files_of("fp32", 256, {PROJECTOR: provider})
    assert "own.projector" in needed
    assert "projector.fp32.onnx" not in needed
    (copied_package / "own.projector").unlink()
    if is_used:
        assert "own.projector: missing" in refusal(copied_package)
    else:
        fastvlm_onnx.load(copied_package).close()


# --- format 1 ------------------------------------------------------------------------------------


def test_format_1_is_read_as_format_2(old_package: Path, tmp_path: Path) -> None:
    manifest = read_manifest(old_package)
    assert manifest.format_version == 1
    assert manifest.prompt.system.endswith("You are a helpful assistant.<|im_end|>\n")
    assert manifest.prompt.user == "<|im_start|>user\n"
    assert manifest.prompt.after_image == "\n"
    assert manifest.prompt.end_of_turn == "<|im_end|>\n"
    assert manifest.prompt.assistant == "<|im_start|>assistant\n"
    assert manifest.decoder.operators == "microsoft"
    facts = {
        name: (graph.weights, graph.int8_products, graph.cache_dtype, graph.onnxruntime)
        for name, graph in manifest.graphs.items()
    }
    assert facts == {
        "vision_encoder.256.int8.onnx": (["vision_encoder.int8.onnx.data"], True, None, "1.22"),
        "projector.int8.onnx": (["projector.int8.onnx.data"], True, None, "1.22"),
        "prefill.int8.onnx": (["decoder.int8.onnx.data"], True, "float32", "1.22"),
        "decoder.int4.onnx": (
            [
                "decoder.int4.onnx.data",
                "embed_tokens.int8.npy",
                "embed_tokens.int8.scale.npy",
            ],
            False,
            "float32",
            "1.22",
        ),
    }
    manifest.write(tmp_path)
    assert json.loads((tmp_path / "fastvlm.json").read_text())["format_version"] == 2


def test_inspect_says_which_format_a_package_has(old_package: Path, package: Path) -> None:
    assert ", manifest format 1\n" in run("inspect", old_package).stdout
    assert ", manifest format 2\n" in run("inspect", package).stdout
    assert json.loads(run("inspect", old_package, "--json").stdout)["format_version"] == 1


@pytest.mark.parametrize(
    ("found", "change"),
    [
        ("surprise is not part of this format", lambda m: m.update(surprise=1)),
        ("decoder.rope is not part of this format", lambda m: m["decoder"].update(rope=1)),
        ("graphs is not part of this format", lambda m: m.update(graphs={})),
        ("measured is missing", lambda m: m.pop("measured")),
        ("prompt.before_image is null", lambda m: m["prompt"].update(before_image=None)),
        ("decoder is 3, expected an object", lambda m: m.update(decoder=3)),
        ("decoder.head_dim is missing", lambda m: m["decoder"].pop("head_dim")),
        ("decoder names 'x', which", lambda m: m["variants"]["fast"].update(decoder="x")),
        ("variants is empty", lambda m: m.update(variants={})),
        (
            "decoder.standard.fp32.onnx has operators of opset 24, expected opset 17",
            lambda m: m["variants"]["fast"].update(decoder="decoder.standard.fp32.onnx"),
        ),
    ],
)
def test_format_1_is_read_strictly(
    old_package: Path, tmp_path: Path, edit_json: Edit, found: str, change: Callable
) -> None:
    (tmp_path / "fastvlm.json").write_bytes((old_package / "fastvlm.json").read_bytes())
    edit_json(tmp_path / "fastvlm.json", change)
    assert found in refusal(tmp_path)


def test_a_prompt_of_format_1_without_turns_has_none(
    old_package: Path, tmp_path: Path, edit_json: Edit
) -> None:
    (tmp_path / "fastvlm.json").write_bytes((old_package / "fastvlm.json").read_bytes())
    edit_json(
        tmp_path / "fastvlm.json",
        lambda m: m.update(
            prompt={"before_image": "Q: ", "before_prompt": " ", "after_prompt": "\nA:"}
        ),
    )
    prompt = read_manifest(tmp_path).prompt
    assert (prompt.system, prompt.user, prompt.after_image) == ("", "Q: ", " ")
    assert (prompt.end_of_turn, prompt.assistant) == ("", "\nA:")
    assert (prompt.before_image, prompt.before_prompt, prompt.after_prompt) == ("Q: ", " ", "\nA:")


def test_a_manifest_survives_reading_and_writing(package: Path, tmp_path: Path) -> None:
    read_manifest(package).write(tmp_path)
    assert (tmp_path / "fastvlm.json").read_text() == (package / "fastvlm.json").read_text()
