"""Graphs in operators of opset 17: the same answers, in ONNX Runtime and outside it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from random_checkpoint import LanguageSize, write_random_checkpoint
from relative_error import relative_error

import fastvlm_onnx
from fastvlm_onnx import FastVLM, InputError, UnsupportedError
from fastvlm_onnx.export.pipeline import export_package
from fastvlm_onnx.names import past_names, present_names

PROMPT = [5, 17, 80, 200, 31, 9, 254, 100]
ANSWER = [3, 8, 120, 44]
# ‖a - b‖ / ‖b‖. In float32 the sums have another order; float16 rounds at other places.
TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("standard") / "standard-onnx"
    export_package("demo", folder, precisions=list(TOLERANCE), operators="standard")
    return folder


@pytest.fixture(scope="module")
def standard(folder: Path) -> FastVLM:
    return fastvlm_onnx.load(folder)


def logits_of(model: FastVLM) -> np.ndarray:
    language_model = model.language_model
    steps = language_model.teacher_forced_logits(language_model.embed([PROMPT]), ANSWER)
    return np.array([row.copy() for row in steps])


@pytest.mark.parametrize("precision", TOLERANCE)
def test_no_operator_is_onnx_runtimes_own(folder: Path, precision: str) -> None:
    path = folder / f"decoder.standard.{precision}.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    assert model.ir_version == 8
    # An engine that does not know the types of a graph's values cannot cast to them.
    assert "CastLike" not in {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("precision", TOLERANCE)
def test_vision_and_projector_are_of_the_decoders_opset(folder: Path, precision: str) -> None:
    for name in (f"vision_encoder.256.{precision}.onnx", f"projector.{precision}.onnx"):
        onnx.checker.check_model(str(folder / name), full_check=True)
        model = onnx.load(folder / name, load_external_data=False)
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]


@pytest.mark.parametrize("precision", TOLERANCE)
def test_logits_are_those_of_the_fused_operators(
    folder: Path, model: FastVLM, precision: str
) -> None:
    found = logits_of(fastvlm_onnx.load(folder, precision=precision))
    assert relative_error(found, logits_of(model)) < TOLERANCE[precision]


@pytest.mark.parametrize("precision", TOLERANCE)
def test_the_sample_pictures_are_answered(
    folder: Path, precision: str, questions: dict, picture: Path
) -> None:
    standard = fastvlm_onnx.load(folder, precision=precision)
    for name, answers in questions.items():
        for prompt, answer in answers.items():
            assert standard.generate(picture.with_name(name), prompt).text == answer


@pytest.mark.parametrize("precision", TOLERANCE)
def test_a_batch_is_answered_as_one_by_one(
    folder: Path, precision: str, questions: dict, picture: Path
) -> None:
    """Answers of several lengths: rows leave, and the others move to the front."""
    standard = fastvlm_onnx.load(folder, precision=precision)
    asked = [(name, *pair) for name, answers in questions.items() for pair in answers.items()]
    names, prompts, expected = zip(*asked, strict=True)
    found = standard.generate_batch([picture.with_name(name) for name in names], prompts)
    assert [answer.text for answer in found] == list(expected)


def test_a_conversation_goes_on_from_its_cache(
    standard: FastVLM, model: FastVLM, picture: Path
) -> None:
    told = []
    for each in (standard, model):
        chat = each.chat()
        told.append([chat.ask("Describe the image.", picture).text, chat.ask("And then?").text])
    assert told[0] == told[1]


def test_keys_and_values_are_those_of_the_fused_operators(
    standard: FastVLM, model: FastVLM
) -> None:
    found = []
    for language_model in (standard.language_model, model.language_model):
        cache = language_model.new_cache(len(PROMPT) + 1)
        language_model.prefill(language_model.embed([PROMPT]), cache)
        language_model.decode_one_step(ANSWER[0], cache)
        found.append(cache.read(0, cache.length))
    assert found[0].shape[2] == len(PROMPT) + 1
    assert relative_error(*found) < TOLERANCE["fp32"]


class ByReference:
    """The decoder run by onnx's own evaluator; the cache goes in and out as arrays."""

    def __init__(self, folder: Path, model: FastVLM) -> None:
        self.model = model
        self.evaluator = ReferenceEvaluator(str(folder / "decoder.standard.fp32.onnx"))
        decoder = model.manifest.decoder
        layers = range(decoder.num_hidden_layers)
        self.pasts = [name for i in layers for name in past_names(i)]
        self.presents = [name for i in layers for name in present_names(i)]
        shape = (1, decoder.num_key_value_heads, 0, decoder.head_dim)
        self.cache = [np.zeros(shape, np.float32) for _ in self.pasts]
        self.length = 0

    def run(self, token_ids: list[int]) -> np.ndarray:
        self.length += len(token_ids)
        feeds = dict(zip(self.pasts, self.cache, strict=True)) | {
            "inputs_embeds": self.model.language_model.embed([token_ids]),
            "attention_mask": np.ones((1, self.length), np.int64),
        }
        logits, *self.cache = self.evaluator.run(["logits", *self.presents], feeds)
        return logits[0, 0]


def test_onnxs_own_evaluator_gives_the_same_logits(folder: Path, model: FastVLM) -> None:
    reference = ByReference(folder, model)
    found = [reference.run(PROMPT), *(reference.run([token]) for token in ANSWER[:-1])]
    assert relative_error(np.array(found), logits_of(model)) < TOLERANCE["fp32"]
    assert {keys.shape[2] for keys in reference.cache} == {len(PROMPT) + len(ANSWER) - 1}


def test_a_shorter_sequence_beside_a_longer_one_is_answered_as_alone(standard: FastVLM) -> None:
    """Padded on its right; the next token comes after the padding, which the mask leaves out."""
    decoder = standard.manifest.decoder
    lengths, steps = (len(PROMPT), len(PROMPT) - 3), ANSWER[:2]
    rows = [standard.language_model.embed_tokens(PROMPT)] * 2
    mask = np.arange(len(PROMPT)) < np.array(lengths)[:, None]
    shape = (2, decoder.num_key_value_heads, 0, decoder.head_dim)
    names = [n for i in range(decoder.num_hidden_layers) for n in past_names(i)]
    session = standard.language_model.decoder.session
    _, *cache = session.run(
        None,
        {"inputs_embeds": np.stack(rows), "attention_mask": mask.astype(np.int64)}
        | {name: np.zeros(shape, np.float32) for name in names},
    )
    mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=True)
    logits, *_ = session.run(
        None,
        {
            "inputs_embeds": standard.language_model.embed_tokens(steps)[:, None],
            "attention_mask": mask.astype(np.int64),
        }
        | dict(zip(names, cache, strict=True)),
    )
    for row, length, token in zip(logits, lengths, steps, strict=True):
        alone = standard.language_model.teacher_forced_logits(
            standard.language_model.embed([PROMPT[:length]]), [token, ANSWER[-1]]
        )
        *_, expected = (step.copy() for step in alone)
        assert relative_error(row[0], expected) < TOLERANCE["fp32"]


def test_weights_lie_where_the_fused_decoders_do(folder: Path, package: Path) -> None:
    def weights(path: Path) -> dict[str, tuple[str, list[int]]]:
        model = onnx.load(path, load_external_data=False)
        return {
            tensor.name: (entry.value, list(tensor.dims))
            for tensor in model.graph.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        }

    found = weights(folder / "decoder.standard.fp32.onnx")
    assert found == weights(package / "decoder.fp32.onnx")


@pytest.mark.parametrize("precision", ["int8", "int4", "fast"])
def test_precisions_that_need_fused_operators_are_refused(tmp_path: Path, precision: str) -> None:
    with pytest.raises(UnsupportedError, match=r"with standard ones there are fp32, fp16\.$"):
        export_package("demo", tmp_path / "onnx", precisions=[precision], operators="standard")
    assert not list(tmp_path.iterdir())


def test_heads_too_odd_for_the_fused_attention_are_answered_with_standard_operators(
    tmp_path: Path,
    small_language: LanguageSize,
    demo_vision: dict[str, tuple[int, ...]],
    picture: Path,
) -> None:
    odd = replace(small_language, hidden_size=144)  # heads of 24
    write_random_checkpoint(tmp_path / "odd", odd, vision=demo_vision, image_size=128)
    with pytest.raises(UnsupportedError, match="heads are 24 wide"):
        export_package(tmp_path / "odd", tmp_path / "onnx", precisions=["int4"])
    assert not (tmp_path / "onnx").exists()
    export_package(tmp_path / "odd", tmp_path / "onnx", operators="standard")
    answer = fastvlm_onnx.load(tmp_path / "onnx").generate(picture, "Hi", max_new_tokens=4)
    assert len(answer.token_ids) == 4


def test_unknown_operators_are_refused_with_the_list(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'own', expected one of microsoft, standard"):
        export_package("demo", tmp_path / "onnx", operators="own")
