"""Files for other runtimes: what they hold, checked with ONNX Runtime and without those runtimes.

tests/clients opens them in the runtimes themselves.
"""

import json
from pathlib import Path

import jinja2
import numpy as np
import onnxruntime
import pytest
from command_line import run
from tokenizers import Tokenizer

import fastvlm_onnx
from fastvlm_onnx import FastVLM, InputError
from fastvlm_onnx.export.layouts.transformers_js import export_transformers_js
from fastvlm_onnx.export.pipeline import export_package
from fastvlm_onnx.package import read_manifest
from fastvlm_onnx.runtime.text.prompt import PromptTemplate, question
from fastvlm_onnx.runtime.text.tokenizer import TextTokenizer
from fastvlm_onnx.runtime.vision.image import preprocess, read_picture

GENAI_FILES = {"genai_config.json", "tokenizer_config.json"}


@pytest.fixture(scope="module")
def genai_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layouts") / "genai"
    export_package("demo", folder, precisions=["fast", "int4"], layout="genai")
    return folder


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path))


def test_the_genai_layout_adds_no_weights(genai_package: Path) -> None:
    """`fast` has two decoders, so the variant after it is taken."""
    manifest = read_manifest(genai_package)
    graphs = {"genai_vision.int4.onnx", "genai_embedding.int4.onnx"}
    assert GENAI_FILES | graphs <= set(manifest.files)
    used = {file for graph in graphs for file in manifest.graphs[graph].weights}
    variant = manifest.variants["int4"]
    own = {file for graph in variant.graph_files() for file in manifest.graphs[graph].weights}
    assert used == {
        "vision_encoder.int8.onnx.data",
        "projector.int8.onnx.data",
        "embed_tokens.int8.npy",
        "embed_tokens.int8.scale.npy",
    }
    assert used <= own | {"embed_tokens.int8.npy", "embed_tokens.int8.scale.npy"}
    assert sum(manifest.files[name].bytes for name in GENAI_FILES | graphs) < 400_000


def test_the_genai_configuration_names_files_of_the_package(genai_package: Path) -> None:
    model = json.loads((genai_package / "genai_config.json").read_text("utf-8"))["model"]
    files = [model[part]["filename"] for part in ("decoder", "embedding", "vision")]
    assert files == ["decoder.int4.onnx", "genai_embedding.int4.onnx", "genai_vision.int4.onnx"]
    assert all((genai_package / file).is_file() for file in files)


def test_the_genai_graphs_compute_what_the_runtime_does(genai_package: Path, picture: Path) -> None:
    with fastvlm_onnx.load(genai_package, precision="int4") as model:
        (expected,) = model.encode_image(picture).array
        pixel_values = preprocess(read_picture(picture), model.image_size)
        vision = session(genai_package / "genai_vision.int4.onnx")
        (features,) = vision.run(None, {"pixel_values": pixel_values})
        np.testing.assert_allclose(features, expected, rtol=0, atol=1e-4)

        text, image_id = [3, 17, 80], model.manifest.decoder.vocab_size
        ids = [*text[:2], *[image_id] * len(features), *text[2:]]
        embedding = session(genai_package / "genai_embedding.int4.onnx")
        feeds = {"input_ids": np.array([ids]), "image_features": features}
        (found,) = embedding.run(None, feeds)
        assert (found == model.language_model.embed([text[:2], features, text[2:]])).all()
        # A step without an image has features without rows.
        feeds = {"input_ids": np.array([text]), "image_features": features[:0]}
        assert (embedding.run(None, feeds)[0] == model.language_model.embed([text])).all()


def test_an_addition_keeps_the_genai_layout(tmp_path: Path) -> None:
    folder = tmp_path / "demo-onnx"
    export_package("demo", folder, precisions=["int4"], layout="genai")
    manifest = export_package("demo", folder, precisions=["fp32"], add=True)
    assert {*GENAI_FILES, "genai_vision.int4.onnx"} <= set(manifest.files)


def test_variants_that_genai_cannot_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--layout genai is for one of fp32, fp16.* are fast;"):
        export_package("demo", tmp_path / "onnx", precisions=["fast"], layout="genai")
    with pytest.raises(InputError, match="expected 'genai' or 'web-page' or None"):
        export_package("demo", tmp_path / "onnx", layout="gguf")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def transformers_js_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layouts") / "transformers-js"
    export_transformers_js("demo", folder, precisions=["int4"])
    return folder


def test_transformers_js_gets_the_ids_of_the_package(
    transformers_js_folder: Path, package: Path, model: FastVLM
) -> None:
    """transformers.js fills the template and tokenises the text; `<image>` is one token there."""
    content = [{"type": "image"}, {"type": "text", "text": "Describe the image."}]
    config = json.loads((transformers_js_folder / "tokenizer_config.json").read_text("utf-8"))
    text = jinja2.Template(config["chat_template"]).render(
        messages=[{"role": "user", "content": content}], add_generation_prompt=True
    )
    found = Tokenizer.from_file(str(transformers_js_folder / "tokenizer.json")).encode(text).ids
    template = PromptTemplate(TextTokenizer(package / "tokenizer.json"), model.manifest.prompt)
    expected: list[int] = []
    for part in template.prompt(question("Describe the image.", 1)):
        expected += part if isinstance(part, list) else [model.manifest.decoder.vocab_size]
    assert found == expected


def test_transformers_js_finds_the_weights_that_its_configuration_names(
    transformers_js_folder: Path,
) -> None:
    config = json.loads((transformers_js_folder / "config.json").read_text("utf-8"))
    graphs = transformers_js_folder / "onnx"
    named = config["transformers.js_config"]["use_external_data_format"]
    assert {f"{file}_data" for file in named} == {path.name for path in graphs.glob("*_data")}
    assert {path.name for path in graphs.glob("*.onnx")} == {
        "vision_encoder_q4.onnx",
        "embed_tokens_q4.onnx",
        "decoder_model_merged_q4.onnx",
    }
    for path in graphs.glob("*.onnx"):
        session(path)


def test_options_of_packages_are_refused_for_transformers_js(tmp_path: Path) -> None:
    command = ["export", "demo", "-o", tmp_path / "x", "--layout", "transformers-js"]
    done = run(*command, "--calibrate", "--overwrite")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "is given with --calibrate, --overwrite, which only packages have" in done.stderr
    with pytest.raises(InputError, match="precision is 'fast', expected one of fp32, fp16, int8,"):
        export_transformers_js("demo", tmp_path / "x", precisions=["fast"])
    assert not list(tmp_path.iterdir())
