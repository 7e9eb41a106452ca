"""Several questions at once: the answers that each gives alone."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastvlm_onnx import FastVLM, InputError, PromptTooLongError
from fastvlm_onnx.package import DecoderFormat
from fastvlm_onnx.runtime.answering.answer import Answer, StageTimes
from fastvlm_onnx.runtime.answering.batch import RunningBatch
from fastvlm_onnx.runtime.engine.cache_types import array_of_pages
from fastvlm_onnx.runtime.engine.decoder import Decoder
from fastvlm_onnx.runtime.engine.kv_cache import BatchCache
from fastvlm_onnx.runtime.engine.options import GenerationConfig
from fastvlm_onnx.runtime.ort.provider_selection import ProviderChoice
from fastvlm_onnx.runtime.ort.providers import CPU
from fastvlm_onnx.runtime.ort.session import GraphSession
from fastvlm_onnx.runtime.text.prompt import question


@pytest.fixture(scope="module")
def asked(questions: dict, picture: Path) -> list[tuple[Path, str]]:
    """Every sample question: prompts and answers of several lengths."""
    return [(picture.with_name(name), prompt) for name in questions for prompt in questions[name]]


def test_greedy_answers_are_those_given_alone(
    model: FastVLM, asked: list[tuple[Path, str]], questions: dict
) -> None:
    pictures, prompts = zip(*asked, strict=True)
    found = model.generate_batch(pictures, prompts)
    alone = [model.generate(*asking) for asking in asked]
    assert [g.token_ids for g in found] == [g.token_ids for g in alone]
    assert [g.text for g in found] == [questions[p.name][prompt] for p, prompt in asked]
    assert [g.finish_reason for g in found] == [g.finish_reason for g in alone]
    assert [g.prompt_tokens for g in found] == [g.prompt_tokens for g in alone]
    assert len({len(g.token_ids) for g in found}) > 2


@pytest.mark.parametrize("max_new_tokens", [1, 2, 5])
def test_answers_end_at_their_own_length(
    model: FastVLM, asked: list[tuple[Path, str]], max_new_tokens: int
) -> None:
    pictures, prompts = zip(*asked, strict=True)
    found = model.generate_batch(pictures, prompts, max_new_tokens=max_new_tokens)
    for generation, asking in zip(found, asked, strict=True):
        alone = model.generate(*asking, max_new_tokens=max_new_tokens)
        assert (generation.token_ids, generation.finish_reason, generation.text) == (
            alone.token_ids,
            alone.finish_reason,
            alone.text,
        )


def test_who_is_done_leaves(
    model: FastVLM, asked: list[tuple[Path, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    binding = BatchCache.binding
    monkeypatch.setattr(
        BatchCache,
        "binding",
        lambda self: sizes.append(len(self.lengths)) or binding(self),
    )
    pictures, prompts = zip(*asked, strict=True)
    found = model.generate_batch(pictures, prompts)
    # Each answer is in the batch for its own tokens: an eos is drawn after the last.
    lengths = [len(generation.token_ids) for generation in found]
    assert sizes == [sum(n > step for n in lengths) for step in range(max(lengths))]


def test_one_prompt_for_all_and_features_for_pictures(model: FastVLM, picture: Path) -> None:
    features = model.encode_image(picture)
    found = model.generate_batch([picture, features], "Describe the image.")
    expected = model.generate(picture, "Describe the image.").token_ids
    assert [g.token_ids for g in found] == [expected] * 2


def test_a_seed_draws_what_it_draws_alone(model: FastVLM, picture: Path) -> None:
    options = {"temperature": 1.5, "seed": 3, "max_new_tokens": 10, "logprobs": True}
    found = model.generate_batch([picture] * 2, "Describe the image.", **options)
    alone = model.generate(picture, "Describe the image.", **options)
    assert [g.token_ids for g in found] == [alone.token_ids] * 2
    assert found[0].logprobs == pytest.approx(alone.logprobs, abs=1e-4)


def test_stop_strings_are_each_answers_own(model: FastVLM, asked: list[tuple[Path, str]]) -> None:
    pictures, prompts = zip(*asked, strict=True)
    found = model.generate_batch(pictures, prompts, stop=["three", "green"])
    alone = [model.generate(*asking, stop=["three", "green"]).text for asking in asked]
    assert [g.text for g in found] == alone


def test_timings_are_there_for_each(model: FastVLM, picture: Path) -> None:
    for generation in model.generate_batch([picture] * 3, "Describe the image."):
        timings = generation.timings
        assert 0 < timings.prefill < timings.first_token
        assert timings.tokens_per_second > 0


@pytest.mark.parametrize(
    ("pictures", "prompts", "options", "words"),
    [
        ([], "Hi", {}, "the list of images is empty"),
        ([], [], {}, "the list of images is empty"),
        (["a.png"], ["Hi", "Ho"], {}, "found 1 images and 2 prompts"),
        ("a.png", "Hi", {}, "images are a str; expected a list"),
        (["a.png"], "Hi", {"on_token": print}, "on_token is for one answer"),
        (["a.png"], "Hi", {"temperature": float("nan")}, "temperature is nan"),
        (["a.png"], "Hi", {"max_new_tokens": -1}, "max_new_tokens is -1"),
        (["nowhere.png"], "Hi", {}, "nowhere.png: no such picture"),
        (["a.png"], [""], {}, "the prompt is empty"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    model: FastVLM, pictures: list, prompts: list, options: dict, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        model.generate_batch(pictures, prompts, **options)


def test_a_prompt_too_long_is_refused(model: FastVLM, picture: Path) -> None:
    with pytest.raises(PromptTooLongError):
        model.generate_batch([picture] * 2, ["Hi", "word " * 10_000])


# --- rows that join and leave --------------------------------------------------------------------


@pytest.fixture
def batch(model: FastVLM) -> RunningBatch:
    return RunningBatch(model.language_model)


def join(batch: RunningBatch, model: FastVLM, path: Path, prompt: str) -> Answer:
    """Let a question join, with room for an answer of 60 tokens."""
    components = model.components()
    parts = components.template.prompt(question(prompt, num_images=1))
    embeds = components.embed(parts, [model.encode_image(path)])
    answer = components.begin_answer(GenerationConfig(), 60, StageTimes(0.0, 0.0, 0.0, 0.0))
    batch.join(embeds, answer, 60)
    return answer


def test_a_prompt_joins_in_the_middle_of_anothers_answer(
    model: FastVLM, batch: RunningBatch, asked: list[tuple[Path, str]]
) -> None:
    alone = {asking: model.generate(*asking).token_ids for asking in asked}
    waiting = sorted(asked, key=lambda asking: -len(alone[asking]))
    joined: dict[tuple[Path, str], Answer] = {}
    while waiting or batch.answers:
        # The next question joins two steps after the one before.
        if waiting:
            asking = waiting.pop(0)
            joined[asking] = join(batch, model, *asking)
        for _ in range(2):
            if batch.answers:
                batch.step()
    assert {asking: answer.token_ids for asking, answer in joined.items()} == alone
    assert {answer.finish_reason for answer in joined.values()} == {"stop"}


def test_an_answer_leaves_and_the_others_go_on(
    model: FastVLM, batch: RunningBatch, asked: list[tuple[Path, str]]
) -> None:
    answers = [join(batch, model, *asking) for asking in asked[:3]]
    batch.step()
    batch.leave(answers[1])
    assert batch.answers == [answers[0], answers[2]]
    so_far = list(answers[1].token_ids)
    while batch.answers:
        batch.step()
    assert answers[1].token_ids == so_far
    for answer, asking in ((answers[0], asked[0]), (answers[2], asked[2])):
        assert answer.token_ids == model.generate(*asking).token_ids


# --- the cache of a batch ------------------------------------------------------------------------


def bfloat16_decoder(onnx: Any, path: Path) -> GraphSession:
    """A stand-in for a decoder whose cache is bfloat16, which no CPU kernel of attention takes.

    Each run writes its token's value into its row's next position. The only logit is the sum of all
    values in the row.
    """
    axes = ["batch_size", 1, "capacity", 2]
    helper, types = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("Cast", ["past_key_values.0.key"], ["past"], to=types.FLOAT),
        helper.make_node("ReduceSum", ["attention_mask", "one"], ["length"], keepdims=1),
        helper.make_node("Shape", ["past"], ["capacity"], start=2, end=3),
        helper.make_node("Squeeze", ["capacity"], ["limit"]),
        helper.make_node("Range", ["zero", "limit", "step"], ["positions"]),
        helper.make_node("Sub", ["length", "one"], ["last"]),
        helper.make_node("Equal", ["positions", "last"], ["is_last"]),
        helper.make_node("Less", ["positions", "last"], ["is_earlier"]),
        helper.make_node("Unsqueeze", ["is_last", "cache_axes"], ["here"]),
        helper.make_node("Unsqueeze", ["is_earlier", "cache_axes"], ["earlier"]),
        helper.make_node("Unsqueeze", ["inputs_embeds", "one"], ["token"]),
        helper.make_node("Where", ["earlier", "past", "nothing"], ["kept"]),
        helper.make_node("Where", ["here", "token", "kept"], ["present"]),
        helper.make_node("Cast", ["present"], ["present.0.key"], to=types.BFLOAT16),
        helper.make_node("ReduceSum", ["present", "all_axes"], ["sum"], keepdims=0),
        helper.make_node("Unsqueeze", ["sum", "logit_axes"], ["logits"]),
    ]
    constants = {
        "zero": np.int64(0),
        "step": np.int64(1),
        "one": np.array([1], np.int64),
        "cache_axes": np.array([1, 3], np.int64),
        "all_axes": np.array([1, 2, 3], np.int64),
        "logit_axes": np.array([1, 2], np.int64),
        "nothing": np.zeros(1, np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "bfloat16_decoder",
        [
            helper.make_tensor_value_info("inputs_embeds", types.FLOAT, ["batch_size", 1, 2]),
            helper.make_tensor_value_info("attention_mask", types.INT64, ["batch_size", "total"]),
            helper.make_tensor_value_info("past_key_values.0.key", types.BFLOAT16, axes),
        ],
        [
            helper.make_tensor_value_info("logits", types.FLOAT, ["batch_size", 1, 1]),
            helper.make_tensor_value_info("present.0.key", types.BFLOAT16, axes),
        ],
        [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=opsets), path)
    return GraphSession(path, ProviderChoice(CPU))


def test_rows_of_a_bfloat16_cache_join_move_and_grow(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx makes the stand-in for a bfloat16 decoder")
    sizes = DecoderFormat(2, 1, 1, 2, 1, 64, [], "microsoft")
    decoder = Decoder(bfloat16_decoder(onnx, tmp_path / "decoder.onnx"), sizes)
    batch = decoder.new_batch()
    sums: list[float] = []
    for value in (1.5, 2.5, 4.0):  # exact in bfloat16
        row = batch.new_row(capacity=4 + len(sums))
        logits = decoder.run(np.full((1, 1, 2), value, np.float32), row)
        sums.append(float(logits[0]))
        batch.admit(row)
    assert sums == [3.0, 5.0, 8.0]
    steps = np.full((3, 1, 2), 0.5, np.float32)
    assert decoder.run_batch(steps, batch)[:, 0].tolist() == [4.0, 6.0, 9.0]
    batch.keep([0, 2])
    assert decoder.run_batch(steps[:2], batch)[:, 0].tolist() == [5.0, 10.0]
    assert batch.lengths.tolist() == [3, 3]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's memory in /proc")
def test_a_cache_takes_memory_for_the_positions_that_are_filled_and_gives_it_back() -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    size = 64 << 20
    before = resident_bytes()
    array = array_of_pages([2, size // 8], np.float32)
    assert resident_bytes() - before < size / 10
    array[0] = 1
    view = array[0]
    del array
    assert resident_bytes() - before > size * 0.4
    del view
    assert resident_bytes() - before < size / 10
