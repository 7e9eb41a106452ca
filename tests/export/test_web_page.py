"""`--layout web-page` before its page is written: npm, and the modules of the client."""

from pathlib import Path

from command_line import refusal, run

from fastvlm_onnx.export.layouts.web_page import (
    ONNXRUNTIME_FILES,
    PAGE_MODULES,
    TOKENIZERS_FILE,
    client_folder,
    page_folder,
)
from fastvlm_onnx.package import read_manifest

EXPORT = ("export", "demo", "--layout", "web-page")


def test_node_modules_without_the_packages_are_refused_and_nothing_is_written(
    tmp_path: Path,
) -> None:
    folder, modules = tmp_path / "page", tmp_path / "node_modules"
    line = refusal(*EXPORT, "-o", folder, "--node-modules", modules)
    assert line.startswith(f"error: {modules}/onnxruntime-web/dist/ort.wasm.min.mjs: missing; run ")
    assert "npm install onnxruntime-web@" in line
    assert "@huggingface/tokenizers@" in line
    assert list(tmp_path.iterdir()) == []


def test_a_web_page_needs_npm_or_node_modules(tmp_path: Path) -> None:
    line = refusal(*EXPORT, "-o", tmp_path / "page", PATH=str(tmp_path))
    assert line.startswith("error: npm is not installed, and a web page needs onnxruntime-web;")
    assert list(tmp_path.iterdir()) == []


def test_node_modules_belong_to_the_web_page(tmp_path: Path) -> None:
    line = refusal("export", "demo", "-o", tmp_path / "demo", "--node-modules", tmp_path)
    assert line == "error: found --node-modules; it belongs to --layout web-page."


def test_a_web_page_has_the_variant_for_browsers_unless_another_is_named(tmp_path: Path) -> None:
    """The files of npm's packages are empty here: the export copies them unread."""
    modules = tmp_path / "node_modules"
    for folder, names in (
        (modules / "onnxruntime-web/dist", ONNXRUNTIME_FILES),
        (modules / "@huggingface/tokenizers/dist", [TOKENIZERS_FILE]),
    ):
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).touch()
    for options, variants in (([], ["web"]), (["--precision", "int8"], ["int8"])):
        page = tmp_path / "-".join(["page", *variants])
        options += ["--node-modules", modules, "--no-golden", "-o", page]
        done = run(*EXPORT, *options)
        assert done.returncode == 0, done.stderr
        assert list(read_manifest(page).variants) == variants


def test_the_modules_of_a_page_stand_in_the_place_of_the_server_s_and_the_client_s() -> None:
    for name in PAGE_MODULES:
        assert (client_folder() / "page" / name).is_file()
    assert (page_folder() / "client.js").is_file()
    assert (client_folder() / "src/engine/packages.js").is_file()
