"""Quantised variants: near fp32, robust against Qwen2's outlier tokens, and stored once."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxscript import nn
from random_checkpoint import LanguageSize, write_random_checkpoint

import fastvlm_onnx
from fastvlm_onnx import FastVLM, InputError
from fastvlm_onnx.cli import main
from fastvlm_onnx.export.graphs import decoder_precisions
from fastvlm_onnx.export.graphs.layers import parameter
from fastvlm_onnx.export.graphs.layers_int8 import Int8Linear
from fastvlm_onnx.export.layouts.transformers_js import export_transformers_js
from fastvlm_onnx.export.pipeline import export_package
from fastvlm_onnx.package import read_manifest
from fastvlm_onnx.runtime.vision.image import preprocess, read_picture
from fastvlm_onnx.variants import CPU_VARIANTS

# Least cosine with fp32 of each stage on the built-in model; fp16 is float32 rounded once.
COSINES = {"fp16": 0.99999, "int8": 0.999, "web": 0.999, "int4": 0.98, "fast": 0.98}
OUTLIERS = (90, 91)


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("variants") / "demo-onnx"
    export_package("demo", folder, precisions=CPU_VARIANTS)
    return folder


@pytest.fixture(scope="module")
def models(variants: Path) -> dict[str, FastVLM]:
    return {p: fastvlm_onnx.load(variants, precision=p) for p in CPU_VARIANTS}


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def logits_of(model: FastVLM, token_ids: list[int], answer: list[int]) -> np.ndarray:
    """Logits after the prompt and after each token of a given answer."""
    steps = model.language_model.teacher_forced_logits(
        model.language_model.embed([token_ids]), answer
    )
    return np.array([row.copy() for row in steps])


@pytest.mark.parametrize("precision", CPU_VARIANTS[1:])
def test_each_stage_is_near_fp32(models: dict[str, FastVLM], precision: str, picture: Path) -> None:
    model, exact = models[precision].image_encoder, models["fp32"].image_encoder
    pixel_values = preprocess(read_picture(picture), models["fp32"].image_size)
    hidden_states = exact.run_vision_encoder(pixel_values)
    assert cosine(model.run_vision_encoder(pixel_values), hidden_states) > COSINES[precision]
    features = exact.run_projector(hidden_states)
    assert cosine(model.run_projector(hidden_states), features) > COSINES[precision]
    prompt = [5, 17, 80, 200, 31, 9, 254, 100]
    found, expected = (logits_of(models[p], prompt, [3, 8, 120, 44]) for p in (precision, "fp32"))
    assert min(map(cosine, found, expected)) > COSINES[precision]


@pytest.mark.parametrize("precision", CPU_VARIANTS)
def test_every_variant_answers_about_the_sample_pictures(
    models: dict[str, FastVLM], precision: str, questions: dict, picture: Path
) -> None:
    for name, answers in questions.items():
        for prompt, answer in answers.items():
            assert models[precision].generate(picture.with_name(name), prompt).text == answer


@pytest.mark.parametrize("precision", CPU_VARIANTS)
def test_decode_continues_what_prefill_began(models: dict[str, FastVLM], precision: str) -> None:
    model, prompt = models[precision].language_model, [5, 17, 80, 200, 31, 9, 254, 100]
    whole = model.prefill(model.embed([prompt]), model.new_cache(20)).copy()
    cache = model.new_cache(20)
    model.prefill(model.embed([prompt[:5]]), cache)
    for token in prompt[5:]:
        last = model.decode_one_step(token, cache)
    # Quantised activations are rounded apart when a graph sees them one by one.
    assert cosine(last, whole) > (1 - 1e-6 if precision == "fp32" else COSINES[precision])


@pytest.mark.parametrize("precision", CPU_VARIANTS)
def test_a_batch_of_images_has_the_features_of_each_image(
    models: dict[str, FastVLM], precision: str, picture: Path
) -> None:
    model = models[precision].image_encoder
    first, second = (
        preprocess(read_picture(picture.with_name(name)), model.image_size)
        for name in ("shapes.png", "word.png")
    )
    both = model.encode_pixel_values(np.concatenate([first, second]))
    assert cosine(both[0], both[1]) < 0.99  # rows that changed places would show
    assert cosine(both[0], model.encode_pixel_values(first)[0]) > 0.999
    assert cosine(both[1], model.encode_pixel_values(second)[0]) > 0.999


# --- outlier tokens ------------------------------------------------------------------------------


class PerTensorInt8Linear(nn.Module):
    """The counter-example: one activation scale for all tokens."""

    def __init__(self, weights: list, bias: object = None) -> None:
        super().__init__()
        self.products = nn.ModuleList([Int8Linear(weight) for weight in weights])
        self.bias = None if bias is None else parameter(bias)

    def forward(self, op, x: ir.Value) -> list[ir.Value]:
        outputs = [product(op, x) for product in self.products]
        return [op.Add(outputs[0], self.bias)] if self.bias is not None else outputs


@pytest.fixture(scope="module")
def outlier_checkpoint(tmp_path_factory: pytest.TempPathFactory, demo_vision: dict) -> Path:
    folder = tmp_path_factory.mktemp("outliers") / "checkpoint"
    language = LanguageSize(256, 768, 8, 4, 2, 768, 739, is_tied=False)
    write_random_checkpoint(
        folder, language, vision=demo_vision, image_size=128, outlier_tokens=OUTLIERS
    )
    return folder


@pytest.fixture(scope="module")
def exact(outlier_checkpoint: Path) -> FastVLM:
    export_package(outlier_checkpoint, outlier_checkpoint.with_name("exact-onnx"))
    return fastvlm_onnx.load(outlier_checkpoint.with_name("exact-onnx"))


def prompts_with_outliers() -> Iterator[list[int]]:
    rng = np.random.default_rng(3)
    for _ in range(6):
        prompt = rng.integers(100, 400, 40).tolist()
        prompt[3], prompt[20] = OUTLIERS
        yield prompt


def worst_cosine(model: FastVLM, exact: FastVLM) -> float:
    """Over the logits behind tokens that are no outliers themselves."""
    return min(
        cosine(logits_of(model, prompt, [7])[0], logits_of(exact, prompt, [7])[0])
        for prompt in prompts_with_outliers()
    )


def test_the_planted_tokens_are_outliers(exact: FastVLM) -> None:
    rows = exact.language_model.embed_tokens([*OUTLIERS, 100, 101, 102])
    lengths = np.linalg.norm(rows, axis=1)
    assert lengths[:2].min() > 500 * lengths[2:].max()


def test_outlier_tokens_cost_the_others_nothing(outlier_checkpoint: Path, exact: FastVLM) -> None:
    folder = outlier_checkpoint.with_name("int8-onnx")
    export_package(outlier_checkpoint, folder, precisions=["int8"])
    assert worst_cosine(fastvlm_onnx.load(folder), exact) > 0.995


def test_one_scale_for_all_tokens_would_fail(
    outlier_checkpoint: Path, exact: FastVLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = decoder_precisions.DECODER_PRECISIONS["int8"]
    form = replace(form, linear=PerTensorInt8Linear, o_linear=None, mlp=None)
    monkeypatch.setitem(decoder_precisions.DECODER_PRECISIONS, "int8", form)
    folder = outlier_checkpoint.with_name("per-tensor-onnx")
    export_package(outlier_checkpoint, folder, precisions=["int8"])
    assert worst_cosine(fastvlm_onnx.load(folder), exact) < 0.995


# --- what is stored ------------------------------------------------------------------------------


def external(folder: Path, graph: str) -> dict[str, str]:
    """Initializer -> the file that holds it."""
    model = onnx.load(folder / graph, load_external_data=False)
    return {
        tensor.name: entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }


def test_a_tied_lm_head_is_stored_in_the_file_of_the_token_embeddings(
    checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "tied-onnx"
    manifest = export_package(checkpoint, folder, precisions=["fp32", "int8", "web", "int4"])
    for graph in ("decoder.int8.onnx", "decoder.web.onnx", "decoder.int4.onnx"):
        files = external(folder, graph)
        assert files["lm_head.weight"] == "embed_tokens.int8.npy"
        assert files["lm_head.scales"] == "embed_tokens.int8.scale.npy"
    # float32 embeddings hold a float32 head as well; float16 ones do not.
    stored = np.load(folder / "embed_tokens.npy", mmap_mode="r").dtype
    shared = external(folder, "decoder.fp32.onnx")["lm_head.weight"] == "embed_tokens.npy"
    assert shared == (stored == np.float32)
    for precision in manifest.variants:
        assert fastvlm_onnx.load(folder, precision=precision).manifest == manifest


def as_format_1(content: dict) -> None:
    """Leave of a manifest what fastvlm-onnx 0.1 wrote."""
    prompt = content["prompt"]
    content["format_version"] = 1
    content["prompt"] = {
        "before_image": prompt["system"] + prompt["user"],
        "before_prompt": prompt["after_image"],
        "after_prompt": prompt["end_of_turn"] + prompt["assistant"],
    }
    del content["decoder"]["operators"]
    kept = ("vision_encoder", "projector", "prefill", "decoder", "embed_tokens")
    for variant in content["variants"].values():
        for key in variant.keys() - set(kept):
            del variant[key]
    known = ("format_version", "source", "image", "prompt", "decoder", "variants", "files")
    for key in content.keys() - {*known, "measured"}:
        del content[key]


def test_a_tied_package_of_format_1_opens(
    checkpoint: Path, tmp_path: Path, edit_json: Callable[[Path, Callable[[dict], None]], None]
) -> None:
    """Format 1 does not say that a decoder reads the files of the token embeddings."""
    folder = tmp_path / "tied-onnx"
    manifest = export_package(checkpoint, folder, precisions=["fp32", "int8", "int4"])
    edit_json(folder / "fastvlm.json", as_format_1)
    for precision in manifest.variants:
        with fastvlm_onnx.load(folder, precision=precision) as model:
            assert model.manifest.format_version == 1
            language_model = model.language_model
            rows = language_model.teacher_forced_logits(language_model.embed([[1, 2, 3]]), [4, 5])
            assert all(np.isfinite(row).all() for row in rows)


def test_an_untied_lm_head_is_stored_in_the_decoders_weights(variants: Path) -> None:
    files = external(variants, "decoder.int8.onnx")  # the built-in model's is untied
    assert files["lm_head.weight"] == "decoder.int8.onnx.data"


def test_variants_share_equal_graphs_and_weights(variants: Path) -> None:
    manifest = read_manifest(variants).variants
    assert manifest["int4"].vision_encoder == manifest["int8"].vision_encoder
    assert manifest["fast"].decoder == manifest["int4"].decoder
    assert manifest["fast"].embed_tokens == manifest["int8"].embed_tokens
    assert set(external(variants, "prefill.int8.onnx").values()) == {"decoder.int8.onnx.data"}


def test_web_shares_the_weights_of_int8_and_leaves_them_as_they_are(
    variants: Path, tmp_path: Path
) -> None:
    files = external(variants, "decoder.web.onnx")
    own = {name for name, file in files.items() if file == "lm_head.web.onnx.data"}
    assert own
    assert all(name.startswith("lm_head.by_channel.") for name in own)
    shared = external(variants, "decoder.int8.onnx")
    assert {name: file for name, file in files.items() if name not in own} == shared
    export_package("demo", tmp_path / "web", precisions=["web"], golden=False)
    export_package("demo", tmp_path / "int8", precisions=["int8"], golden=False)
    for precision in ("web", "int8"):
        alone, beside = read_manifest(tmp_path / precision).files, read_manifest(variants).files
        weights = [name for name in alone if name.endswith((".onnx", ".data", ".npy"))]
        assert {name: alone[name] for name in weights} == {name: beside[name] for name in weights}


def test_the_prefill_graph_has_no_logits(variants: Path) -> None:
    model = onnx.load(variants / "prefill.int8.onnx", load_external_data=False)
    names = [output.name for output in model.graph.output]
    assert [name for name in names if not name.startswith("present.")] == ["hidden_states"]
    assert not any(t.name.startswith("lm_head") for t in model.graph.initializer)


def test_embeddings_of_every_variant_are_near_each_other(models: dict[str, FastVLM]) -> None:
    ids = list(range(400))
    exact = models["fp32"].language_model.embed_tokens(ids)
    for precision in CPU_VARIANTS:
        found = models[precision].language_model.embed_tokens(ids)
        assert found.dtype == np.float32
        assert np.linalg.norm(found - exact) < 0.01 * np.linalg.norm(exact)


def test_an_unknown_precision_is_refused_with_the_list(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'int3' is unknown; expected one of fp32, fp16, int8"):
        export_package("demo", tmp_path / "onnx", precisions=["int3"])


def test_a_missing_variant_names_the_command(package: Path) -> None:
    with pytest.raises(InputError, match="--precision int4"):
        fastvlm_onnx.load(package, precision="int4")


def test_variants_may_be_named_in_several_options(tmp_path: Path) -> None:
    options = ["--precision", "fp16", "--precision", "int8,fp32", "--no-golden"]
    main(["export", "demo", "-o", str(tmp_path / "onnx"), *options])
    assert list(read_manifest(tmp_path / "onnx").variants) == ["fp16", "int8", "fp32"]


@pytest.mark.parametrize("export", [export_package, export_transformers_js])
def test_none_for_the_variants_is_refused(export: Callable[..., object], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="precisions is None"):
        export("demo", tmp_path / "onnx", precisions=None)
