"""`export --add`: variants and image sizes come into a package whole or not at all."""

import json
from pathlib import Path

import pytest
from command_line import refusal, run
from random_checkpoint import LanguageSize, write_random_checkpoint

import fastvlm_onnx
from fastvlm_onnx.errors import FastVLMError, InputError, PackageError
from fastvlm_onnx.export.pipeline import export_package, finish_package
from fastvlm_onnx.export.verification.verify import verify_package
from fastvlm_onnx.golden import read_golden
from fastvlm_onnx.names import CARD_FILE, GOLDEN_FILE
from fastvlm_onnx.package import read_manifest
from fastvlm_onnx.package_files import check_files

PROMPT = "Describe the image."


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def beside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.parent.iterdir())


def test_an_added_variant_stands_beside_the_old_one(copied_package: Path, picture: Path) -> None:
    before = contents(copied_package)
    expected = fastvlm_onnx.load(copied_package).generate(picture, PROMPT)
    export_package("demo", copied_package, precisions=["int8"], add=True)
    manifest = read_manifest(copied_package)
    check_files(copied_package, list(manifest.files), manifest)
    assert list(manifest.variants) == ["fp32", "int8"]
    assert list(read_golden(copied_package / GOLDEN_FILE).variants) == ["fp32", "int8"]
    assert "| image sizes in pixels | 256 |" in (copied_package / CARD_FILE).read_text()
    after = contents(copied_package)
    weights = [name for name in before if name.endswith((".data", ".npy", "tokenizer.json"))]
    assert {name: after[name] for name in weights} == {name: before[name] for name in weights}
    assert fastvlm_onnx.load(copied_package).generate(picture, PROMPT).text == expected.text
    assert fastvlm_onnx.load(copied_package, precision="int8").generate(picture, PROMPT).text


def test_an_added_image_size_is_there_in_every_variant_and_not_the_default(
    copied_package: Path,
) -> None:
    done = run("export", "demo", "-o", copied_package, "--add", "--image-size", "320")
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(copied_package)
    assert manifest.image.default_size == 256
    assert list(manifest.variants) == ["fp32"]
    assert list(manifest.variants["fp32"].vision_encoder) == ["256", "320"]
    assert fastvlm_onnx.load(copied_package, image_size=320).image_size == 320


def test_a_package_of_standard_operators_is_added_to_with_them(tmp_path: Path) -> None:
    folder = tmp_path / "demo-onnx"
    export_package("demo", folder, operators="standard")
    export_package("demo", folder, operators="standard", precisions=["fp16"], add=True)
    decoders = [variant.decoder for variant in read_manifest(folder).variants.values()]
    assert decoders == ["decoder.standard.fp32.onnx", "decoder.standard.fp16.onnx"]


def test_variants_that_share_weights_with_the_added_one_still_load(
    tmp_path: Path, picture: Path
) -> None:
    # `fast` holds a part of int8's decoder under the name of all of it.
    folder = tmp_path / "demo-onnx"
    export_package("demo", folder, precisions=["fast"])
    export_package("demo", folder, precisions=["int8"], add=True)
    for precision in ("fast", "int8"):
        assert fastvlm_onnx.load(folder, precision=precision).generate(picture, PROMPT).text


def test_add_keeps_the_measurements_and_shows_them_on_the_card(copied_package: Path) -> None:
    measured = verify_package(copied_package, "demo", prompts=[PROMPT], steps=2)
    finish_package(read_manifest(copied_package), measured.variants, copied_package)
    export_package("demo", copied_package, precisions=["int8"], add=True)
    manifest = read_manifest(copied_package)
    assert manifest.measured == measured.variants
    assert list(manifest.variants) == ["fp32", "int8"]
    assert "image_hidden_states" in (copied_package / CARD_FILE).read_text()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"precisions": ["fp32"]}, InputError, "holds fp32 at 256 pixels"),
        ({"precisions": [], "image_sizes": [256]}, InputError, "nothing to add"),
        ({"precisions": ["int8"], "overwrite": True}, InputError, "both --add and --overwrite"),
        ({"precisions": ["int3"]}, InputError, "expected one of fp32, fp16, int8"),
        (
            {"precisions": ["fp16"], "operators": "standard"},
            PackageError,
            "not made of standard operators",
        ),
    ],
)
def test_a_refused_addition_changes_nothing(
    copied_package: Path, options: dict[str, object], error: type[FastVLMError], words: str
) -> None:
    before, neighbours = contents(copied_package), beside(copied_package)
    with pytest.raises(error, match=words):
        export_package("demo", copied_package, **{"add": True, **options})
    assert (contents(copied_package), beside(copied_package)) == (before, neighbours)


def test_a_variant_of_another_checkpoint_is_refused(
    tmp_path: Path, small_language: LanguageSize, demo_vision: dict[str, tuple[int, ...]]
) -> None:
    for seed in (1, 2):
        write_random_checkpoint(
            tmp_path / f"tuned-{seed}",
            small_language,
            seed=seed,
            vision=demo_vision,
            image_size=128,
        )
    folder = tmp_path / "package"
    export_package(tmp_path / "tuned-1", folder, precisions=["int8"])
    before = contents(folder)
    with pytest.raises(PackageError, match=r"was made of another checkpoint \(tuned-1\)"):
        export_package(tmp_path / "tuned-2", folder, precisions=["int4"], add=True)
    assert contents(folder) == before
    assert beside(folder) == ["package", "tuned-1", "tuned-2"]


def test_an_addition_that_fails_on_the_way_leaves_the_package(copied_package: Path) -> None:
    before = contents(copied_package)

    def fail(stage: str, done: int, total: int) -> None:
        if done > total / 2:
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        export_package("demo", copied_package, precisions=["int8"], add=True, progress=fail)
    assert contents(copied_package) == before
    assert beside(copied_package) == [copied_package.name]


def test_a_folder_that_is_no_package_cannot_be_added_to(tmp_path: Path) -> None:
    assert "no such folder" in refusal("export", "demo", "-o", tmp_path / "nothing", "--add")
    (tmp_path / "notes.txt").write_text("mine")
    refused = refusal("export", "demo", "-o", tmp_path, "--add", "--precision", "int8")
    assert "is no package" in refused
    assert json.dumps(beside(tmp_path / "notes.txt")) == '["notes.txt"]'


def test_the_command_that_a_missing_variant_names_adds_it(copied_package: Path) -> None:
    refused = refusal("generate", "x.png", "Hi", "--model", copied_package, "--precision", "int8")
    command = refused.split("`")[1].split()
    assert command[0] == "fastvlm-onnx"
    assert run(*command[1:]).returncode == 0
    assert "int8" in read_manifest(copied_package).variants
