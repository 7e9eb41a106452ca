"""Structured answers: every answer is held to its schema, its expression or its choices."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import refusal, run

import fastvlm_onnx
from fastvlm_onnx import FastVLM, InputError
from fastvlm_onnx.runtime.answering.answer import Answer, StageTimes
from fastvlm_onnx.runtime.answering.batch import RunningBatch
from fastvlm_onnx.runtime.engine.options import GenerationConfig
from fastvlm_onnx.runtime.structured.constraints import Constraints
from fastvlm_onnx.runtime.structured.grammar import MAX_CHOICES, MAX_SCHEMA_DEPTH
from fastvlm_onnx.runtime.text.prompt import question
from fastvlm_onnx.variants import CPU_VARIANTS

pytest.importorskip("llguidance", reason="the extra `structured` is not installed")

COLORS = ["red", "green", "orange", "pink", "brown"]
DRAWING = {
    "type": "object",
    "properties": {
        "color": {"enum": COLORS},
        "counts": {
            "type": "array",
            "items": {"type": "integer", "minimum": -5, "maximum": 250},
            "minItems": 1,
            "maxItems": 3,
        },
        "label": {"type": "string", "maxLength": 6},
        "filled": {"type": "boolean"},
    },
    "required": ["color", "counts", "label", "filled"],
    "additionalProperties": False,
}
SENTENCE = r"The [a-z]+ shape is an? [a-z]+\."


def check_drawing(drawing: Any) -> None:
    """Compare a value with DRAWING by hand."""
    assert list(drawing) == ["color", "counts", "label", "filled"]
    assert drawing["color"] in COLORS
    assert 1 <= len(drawing["counts"]) <= 3
    assert all(type(count) is int and -5 <= count <= 250 for count in drawing["counts"])
    assert isinstance(drawing["label"], str)
    assert len(drawing["label"]) <= 6
    assert type(drawing["filled"]) is bool


@pytest.fixture(scope="module")
def shapes(picture: Path) -> Path:
    return picture.with_name("shapes.png")


# --- answers -------------------------------------------------------------------------------------


def test_a_schema_gives_json_and_its_value(model: FastVLM, shapes: Path) -> None:
    answer = model.generate(shapes, "Describe the image.", schema=DRAWING)
    check_drawing(answer.parsed)
    assert answer.text == json.dumps(answer.parsed, ensure_ascii=False, separators=(",", ":"))
    assert answer.finish_reason == "stop"


def test_an_expression_is_matched_by_the_whole_answer(model: FastVLM, shapes: Path) -> None:
    prompt = "What shape is the pink object?"
    answer = model.generate(shapes, prompt, regex=SENTENCE)
    assert answer.text == "The pink shape is a star."
    assert answer.parsed is None
    other = model.generate(shapes, prompt, regex=r"[0-9]{3,5} apples")
    assert re.fullmatch(r"[0-9]{3,5} apples", other.text)


def test_the_models_own_end_token_ends_an_answer_that_may_go_on(
    model: FastVLM, shapes: Path
) -> None:
    answer = model.generate(shapes.with_name("word.png"), "What's the word?", regex="[A-Za-z]+")
    assert (answer.text, answer.finish_reason) == ("History", "stop")


def test_the_answer_is_one_of_the_choices(model: FastVLM, shapes: Path) -> None:
    prompt = "Does the brown heart lie above the orange shape?"
    assert model.generate(shapes, prompt, choices=["Yes", "No"]).text == "No"
    assert model.generate(shapes, prompt, choices=["only this"]).text == "only this"


@pytest.mark.parametrize(
    "choice",
    [
        "".join(map(chr, range(32, 127))),
        " spaces at both ends ",
        "two\nlines\tand a tab",
        "日本語 \N{PARTY POPPER}",
        "e\u0301 is not composed",
        "<|im_end|>",
    ],
)
def test_a_choice_comes_as_it_was_given(model: FastVLM, shapes: Path, choice: str) -> None:
    answer = model.generate(shapes, "Describe the image.", choices=[choice])
    assert (answer.text, answer.finish_reason) == (choice, "stop")


@pytest.mark.parametrize("seed", range(12))
def test_drawn_answers_hold_too(model: FastVLM, shapes: Path, seed: int) -> None:
    options = {"temperature": 1.0, "seed": seed, "top_k": 0, "logprobs": True}
    answer = model.generate(shapes, "Describe the image.", schema=DRAWING, **options)
    check_drawing(answer.parsed)
    assert answer.logprobs is not None
    assert len(answer.logprobs) == len(answer.token_ids)
    again = model.generate(shapes, "Describe the image.", schema=DRAWING, **options)
    assert again.token_ids == answer.token_ids


def test_log_probabilities_are_those_of_the_model_without_the_constraint(
    model: FastVLM, shapes: Path
) -> None:
    prompt = "What shape is the pink object?"
    free = model.generate(shapes, prompt, logprobs=True)
    held = model.generate(shapes, prompt, logprobs=True, regex=SENTENCE)
    assert held.token_ids == free.token_ids
    assert held.logprobs == pytest.approx(free.logprobs, abs=1e-4)


def test_a_whole_answer_costs_no_end_token(model: FastVLM, shapes: Path) -> None:
    drawn: list[int] = []
    answer = model.generate(shapes, "Hi", choices=["Yes"], on_token=drawn.append)
    assert drawn == answer.token_ids
    # After these the matcher takes no more, so the last token may be the last that is allowed.
    exact = model.generate(shapes, "Hi", choices=["Yes"], max_new_tokens=len(drawn))
    assert (exact.text, exact.finish_reason) == ("Yes", "stop")


def test_an_answer_that_is_cut_says_so_and_has_no_value(model: FastVLM, shapes: Path) -> None:
    answer = model.generate(shapes, "Describe the image.", schema=DRAWING, max_new_tokens=5)
    assert (answer.finish_reason, answer.parsed) == ("length", None)
    assert answer.text.startswith('{"')


def test_a_stop_text_ends_a_structured_answer(model: FastVLM, shapes: Path) -> None:
    prompt = "What shape is the pink object?"
    answer = model.generate(shapes, prompt, regex=SENTENCE, stop=[" shape"])
    assert (answer.text, answer.finish_reason) == ("The pink", "stop")


def test_pieces_join_to_the_answer(model: FastVLM, shapes: Path) -> None:
    pieces = list(model.stream(shapes, "Describe the image.", schema=DRAWING))
    last = pieces[-1].generation
    assert last is not None
    assert "".join(piece.text for piece in pieces) == last.text
    check_drawing(last.parsed)


def test_turns_of_a_chat_have_structures_of_their_own(model: FastVLM, shapes: Path) -> None:
    prompt = "What shape is the pink object?"
    with model.chat() as chat:
        first = chat.ask("Describe the image.", shapes, schema=DRAWING)
        check_drawing(first.parsed)
        assert re.fullmatch(SENTENCE, chat.ask(prompt, regex=SENTENCE).text)
        assert chat.ask(prompt, choices=["Yes", "No"]).text in ("Yes", "No")
        assert chat.ask(prompt).finish_reason == "stop"
        with pytest.raises(InputError, match="regex cannot be used"):
            chat.ask(prompt, regex="(")
        assert len(chat.turns) == 4


def test_a_batch_gives_the_answers_given_alone(model: FastVLM, shapes: Path) -> None:
    pictures = [shapes, shapes.with_name("hand.png"), shapes.with_name("word.png")]
    found = model.generate_batch(pictures, "Describe the image.", schema=DRAWING)
    for generation, path in zip(found, pictures, strict=True):
        check_drawing(generation.parsed)
        alone = model.generate(path, "Describe the image.", schema=DRAWING)
        assert generation.token_ids == alone.token_ids


def test_rows_of_a_batch_have_structures_of_their_own(model: FastVLM, shapes: Path) -> None:
    components, batch = model.components(), RunningBatch(model.language_model)
    embeds = components.embed(
        components.template.prompt(question("Describe the image.", 1)), [model.encode_image(shapes)]
    )
    structures: list[dict[str, Any]] = [
        {"schema": DRAWING},
        {"regex": SENTENCE},
        {},
        {"choices": ["one", "two"]},
        {"schema": {"type": "array", "items": {"type": "integer"}, "maxItems": 2}},
    ]
    answers: list[Answer] = []
    for structure in structures:
        config = GenerationConfig(**structure)
        answers.append(components.begin_answer(config, 100, StageTimes(0, 0, 0, 0)))
        batch.join(embeds, answers[-1], 100)
    while batch.answers:
        batch.step()
    for answer, structure in zip(answers, structures, strict=True):
        found = answer.result(components.describe(), embeds.shape[1])
        alone = model.generate(shapes, "Describe the image.", max_new_tokens=100, **structure)
        assert (found.token_ids, found.finish_reason) == (alone.token_ids, alone.finish_reason)


@pytest.mark.parametrize("variant", CPU_VARIANTS)
def test_every_variant_is_held(variants_package: Path, shapes: Path, variant: str) -> None:
    try:
        opened = fastvlm_onnx.load(variants_package, precision=variant)
    except fastvlm_onnx.ProviderError as error:
        pytest.skip(str(error))
    with opened as model:
        check_drawing(model.generate(shapes, "Describe the image.", schema=DRAWING).parsed)


def test_threads_share_the_grammars_of_a_model(package: Path, shapes: Path) -> None:
    with fastvlm_onnx.load(package) as model, ThreadPoolExecutor(8) as pool:
        features = model.encode_image(shapes)

        def ask(number: int) -> str:
            choices = [f"number {number % 3}", "none"]
            return model.generate(features, "Describe the image.", choices=choices).text

        texts = list(pool.map(ask, range(24)))
    assert all(text in (f"number {i % 3}", "none") for i, text in enumerate(texts))


def test_logits_past_the_vocabulary_are_never_allowed(model: FastVLM) -> None:
    tokenizer = model.template.tokenizer
    size, end = tokenizer.vocab_size, model.manifest.decoder.eos_token_ids
    constraints = Constraints(tokenizer, size + 100, end)
    constraint = constraints.new_constraint(GenerationConfig(regex=r"(.|\n)*"))
    assert constraint is not None
    allowed = constraint.allowed_tokens()
    assert allowed.shape == (size + 100,)
    assert not allowed[size:].any()
    # Of the special tokens, only the model's own end tokens end an answer.
    assert set(np.flatnonzero(allowed)) & set(tokenizer.special_token_ids) == set(end)


def test_a_pydantic_model_is_a_schema_of_its_fields_alone(model: FastVLM, shapes: Path) -> None:
    pydantic = pytest.importorskip("pydantic", reason="pydantic is not installed")
    name, sides = pydantic.Field(max_length=5), pydantic.Field(ge=0, le=99)
    shape = pydantic.create_model("Shape", name=(str, name), sides=(int, sides))
    several = pydantic.Field(min_length=1, max_length=2)
    image = pydantic.create_model("Image", shapes=(list[shape], several), is_red=bool)
    answer = model.generate(shapes, "Describe the image.", schema=image)
    found = image.model_validate(answer.parsed)
    assert answer.parsed == found.model_dump()


# --- refusals ------------------------------------------------------------------------------------


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"schema": {"type": "colour"}}, "schema cannot be used: Invalid type: colour"),
        ({"schema": {"not": {}}}, "schema cannot be used: Unimplemented keys"),
        ({"schema": {"not": {}, "x-guidance": {"lenient": True}}}, "Unimplemented keys"),
        ({"schema": {"enum": []}}, "Unsatisfiable schema"),
        ({"schema": {"$ref": "#"}}, "schema cannot be used"),
        ({"schema": {"$ref": "https://example.com/a.json"}}, "does not fetch"),
        ({"schema": {"$ref": "file:///etc/passwd"}}, "does not fetch"),
        ({"schema": {"enum": [float("nan")]}}, "schema is no JSON"),
        ({"schema": {"enum": [object()]}}, "schema is no JSON"),
        ({"schema": {"enum": ["\ud800"]}}, "schema has an unpaired surrogate"),
        ({"schema": nested(MAX_SCHEMA_DEPTH)}, "schema is nested deeper than"),
        ({"schema": {"enum": [str(i) for i in range(9000)]}}, "schema has .* bytes; expected at"),
        ({"schema": '{"type": "object"}'}, "schema is a str; expected a dict"),
        ({"regex": "(a"}, "regex cannot be used: unclosed group"),
        ({"regex": "(?=a)b"}, "look-around"),
        ({"regex": r"(a)\1"}, "backreferences"),
        ({"regex": ""}, "regex is ''"),
        ({"regex": "\ud800"}, "regex has an unpaired surrogate"),
        ({"regex": "a" * 5000}, "regex has 5000 bytes; expected at most"),
        ({"regex": "(" * 2000 + "a" + ")" * 2000}, "regex cannot be used"),
        ({"choices": []}, r"choices is \[\]; expected at least one text"),
        ({"choices": ["a", ""]}, r"choices\[1\] is ''; expected a text that is not empty"),
        ({"choices": "yes"}, "choices is a text; expected a list"),
        ({"choices": ["a"] * (MAX_CHOICES + 1)}, "choices has 1001 texts; expected at most"),
        ({"choices": ["a" * 40_000]}, "choices has 40000 bytes; expected at most"),
        ({"regex": "a", "choices": ["a"]}, "found regex and choices; expected only one"),
        ({"schema": {}, "ignore_eos": True}, "found schema and ignore_eos"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_structure_that_cannot_be_used_is_refused_before_an_image_is_read(
    model: FastVLM, options: dict[str, Any], words: str
) -> None:
    for ask in (model.generate, model.stream):
        with pytest.raises(InputError, match=words) as refused:
            ask("nowhere.png", "Hi", **options)
        assert len(str(refused.value).splitlines()) == 1
        assert len(str(refused.value)) < 400
    with pytest.raises(InputError, match=words):
        model.generate_batch(["nowhere.png"], "Hi", **options)


def test_work_without_a_limit_is_refused(model: FastVLM, shapes: Path) -> None:
    # The grammar is small, and its states would be a thousand million.
    with pytest.raises(InputError, match=r"regex cannot be used: .*too many"):
        model.generate(shapes, "Hi", regex="((x{1000}){1000}){1000}y", max_new_tokens=50)
    assert model.generate(shapes, "Hi", choices=["Yes"]).text == "Yes"


# --- commands ------------------------------------------------------------------------------------


@pytest.fixture
def schema_file(tmp_path: Path) -> Path:
    path = tmp_path / "drawing.json"
    path.write_text(json.dumps(DRAWING))
    return path


def test_generate_takes_a_schema(package: Path, shapes: Path, schema_file: Path) -> None:
    command = ["generate", shapes, "Describe the image.", "--model", package]
    plain = run(*command, "--schema", schema_file)
    assert plain.returncode == 0, plain.stderr
    check_drawing(json.loads(plain.stdout))
    fields = json.loads(run(*command, "--schema", schema_file, "--json").stdout)
    assert fields["parsed"] == json.loads(plain.stdout)
    assert "parsed" not in json.loads(run(*command, "--choice", "A", "--json").stdout)


def test_generate_takes_an_expression_or_choices(package: Path, shapes: Path) -> None:
    command = ["generate", shapes, "What shape is the pink object?", "--model", package]
    assert run(*command, "--regex", SENTENCE).stdout == "The pink shape is a star.\n"
    assert run(*command, "--choice", "A", "--choice", "B").stdout in ("A\n", "B\n")
    assert "found regex and choices" in refusal(*command, "--regex", "a", "--choice", "b")


def test_captions_have_the_value_beside_the_text(
    package: Path, shapes: Path, schema_file: Path
) -> None:
    command = ["caption", shapes, "--model", package]
    done = run(*command, "--schema", schema_file)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout)
    check_drawing(line["parsed"])
    assert json.loads(line["text"]) == line["parsed"]
    cut = json.loads(run(*command, "--schema", schema_file, "--max-new-tokens", 3).stdout)
    assert ("parsed" in cut, cut["finish_reason"]) == (False, "length")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[1]", "found a list, expected an object"),
        ('{"type": "colour"}', "Invalid type: colour"),
    ],
)
def test_a_schema_file_that_cannot_be_used_is_refused(
    package: Path, tmp_path: Path, content: str | None, words: str
) -> None:
    path, output = tmp_path / "schema.json", tmp_path / "captions.jsonl"
    if content is not None:
        path.write_text(content)
    given = ["--model", package, "--schema", path]
    assert words in refusal("caption", "nowhere.png", *given, "-o", output)
    assert not output.exists()
