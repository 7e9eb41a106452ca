"""Several questions at once: the answers that each gives alone."""

from pathlib import Path

import numpy as np
import pytest

from fastvlm_onnx import FastVLM, InputError, PromptTooLongError
from fastvlm_onnx.runtime.engine import kv_cache


@pytest.fixture(scope="module")
def asked(questions: dict, picture: Path) -> list[tuple[Path, str]]:
    """Every sample question: prompts and answers of several lengths."""
    return [(picture.with_name(name), prompt) for name in questions for prompt in questions[name]]


def test_greedy_answers_are_those_given_alone(
    model: FastVLM, asked: list[tuple[Path, str]], questions: dict
) -> None:
    pictures, prompts = zip(*asked, strict=True)
    found = model.generate_batch(pictures, prompts)
    alone = [model.generate(*question) for question in asked]
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
    for generation, question in zip(found, asked, strict=True):
        alone = model.generate(*question, max_new_tokens=max_new_tokens)
        assert (generation.token_ids, generation.finish_reason, generation.text) == (
            alone.token_ids,
            alone.finish_reason,
            alone.text,
        )


def test_who_is_done_leaves(
    model: FastVLM, asked: list[tuple[Path, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    binding = kv_cache.BatchCache.binding
    monkeypatch.setattr(
        kv_cache.BatchCache,
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
    alone = [model.generate(*question, stop=["three", "green"]).text for question in asked]
    assert [g.text for g in found] == alone


def test_timings_are_there_for_each(model: FastVLM, picture: Path) -> None:
    for generation in model.generate_batch([picture] * 3, "Describe the image."):
        timings = generation.timings
        assert 0 < timings.prefill < timings.first_token
        assert timings.tokens_per_second > 0


@pytest.mark.parametrize(
    ("pictures", "prompts", "options", "words"),
    [
        ([], "Hi", {}, "the list of pictures is empty"),
        ([], [], {}, "the list of pictures is empty"),
        (["a.png"], ["Hi", "Ho"], {}, "found 1 pictures and 2 prompts"),
        ("a.png", "Hi", {}, "pictures are a str; expected a list"),
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


def test_rows_that_stay_move_with_all_they_hold() -> None:
    """The cache by itself: what is kept is what was there."""
    batch = object.__new__(kv_cache.BatchCache)
    rng = np.random.default_rng(0)
    array = rng.random((4, 2, 6, 3), np.float32)
    batch._arrays, batch._binding = {"past_key_values.0.key": array.copy()}, None
    batch.lengths = np.array([3, 6, 2, 5])
    batch.keep([1, 3])
    assert batch.lengths.tolist() == [6, 5]
    moved = batch._arrays["past_key_values.0.key"]
    np.testing.assert_array_equal(moved[0], array[1])
    np.testing.assert_array_equal(moved[1, :, :5], array[3, :, :5])
