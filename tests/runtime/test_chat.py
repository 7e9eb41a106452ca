"""Conversations: the same answers as asked afresh, each question at the cost of its own tokens."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from relative_error import relative_error

from fastvlm_onnx import FastVLM, ImageFeatures, InputError, PromptTooLongError
from fastvlm_onnx.runtime.answering.chat import Chat
from fastvlm_onnx.runtime.engine.decoder import Decoder
from fastvlm_onnx.runtime.text.prompt import ImagePlace

FEW = {"max_new_tokens": 12}


@pytest.fixture
def chat(model: FastVLM) -> Iterator[Chat]:
    with model.chat() as chat:
        yield chat


@pytest.fixture
def prefilled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Positions of every decoder run that is more than a token."""
    lengths: list[int] = []
    run = Decoder.run

    def note(
        self: object, inputs_embeds: np.ndarray, cache: object, *, is_greedy: bool
    ) -> np.ndarray:
        if inputs_embeds.shape[1] > 1:
            lengths.append(inputs_embeds.shape[1])
        return run(self, inputs_embeds, cache, is_greedy=is_greedy)

    monkeypatch.setattr(Decoder, "run", note)
    return lengths


def logits_afresh(model: FastVLM, chat: Chat) -> np.ndarray:
    """Logits after the whole conversation, from an empty cache."""
    language_model = model.language_model
    embeds = language_model.embed(chat.transcript.parts(chat.turns))
    return next(language_model.teacher_forced_logits(embeds, [0]))


def logits_in_chat(model: FastVLM, chat: Chat) -> np.ndarray:
    """The same logits from the chat's own cache."""
    transcript, language_model = chat.transcript, model.language_model
    assert transcript.cache is not None
    uncached = [transcript.pending_token_ids, model.template.end_of_turn()]
    return language_model.prefill(language_model.embed(uncached), transcript.cache)


def test_the_first_question_is_answered_as_generate_answers_it(
    chat: Chat, model: FastVLM, questions: dict, picture: Path
) -> None:
    for prompt, answer in questions[picture.name].items():
        chat.reset()
        found = chat.ask(prompt, picture)
        assert found.text == answer
        assert found.token_ids == model.generate(picture, prompt).token_ids
        assert found.prompt_tokens == model.generate(picture, prompt).prompt_tokens


def test_a_first_turn_has_the_tokens_of_a_single_prompt(model: FastVLM) -> None:
    template = model.template
    content = [ImagePlace(0), "What is it?"]
    first, image, last = template.prompt(content)
    user, same_image, words = template.user_turn(content)
    assert template.system() + user == first
    assert (image, words) == (same_image, last)
    (without,) = template.user_turn(["What is it?"])
    assert len(without) < len(user) + len(words)


def test_a_further_question_costs_its_own_tokens(
    chat: Chat, picture: Path, prefilled: list[int]
) -> None:
    first = chat.ask("Describe the image.", picture)
    second = chat.ask("How many shapes do you see?")
    assert prefilled[0] == first.prompt_tokens
    assert prefilled[1] < 30
    before = first.prompt_tokens + len(first.token_ids)
    assert before < second.prompt_tokens <= before + prefilled[1]
    assert [turn.has_image for turn in chat.turns] == [True, False]


@pytest.mark.parametrize("max_new_tokens", [1, 3, 40])
def test_the_cache_is_that_of_the_whole_conversation(
    chat: Chat, model: FastVLM, picture: Path, max_new_tokens: int
) -> None:
    """Whether the answer ended by itself or was cut off."""
    chat.ask("Describe the image.", picture, max_new_tokens=max_new_tokens)
    chat.ask("And now?", max_new_tokens=max_new_tokens)
    expected = logits_afresh(model, chat)
    assert relative_error(logits_in_chat(model, chat), expected) < 1e-4


def test_an_answer_closed_early_stays_as_far_as_it_came(
    chat: Chat, model: FastVLM, picture: Path
) -> None:
    pieces = chat.stream("Describe the image.", picture)
    shown = next(pieces).text + next(pieces).text
    pieces.close()
    (turn,) = chat.turns
    assert model.template.tokenizer.decode(turn.token_ids).startswith(shown.strip())
    expected = logits_afresh(model, chat)
    assert relative_error(logits_in_chat(model, chat), expected) < 1e-4


def test_the_next_question_ends_an_answer_that_nobody_waits_for(chat: Chat, picture: Path) -> None:
    pieces = chat.stream("Describe the image.", picture)
    next(pieces)
    chat.ask("How many shapes do you see?", **FEW)
    assert len(chat.turns) == 2
    assert list(pieces) == []


def test_a_question_that_never_began_leaves_no_turn(chat: Chat, picture: Path) -> None:
    chat.stream("Describe the image.", picture)
    assert chat.ask("Describe the image.", picture, **FEW).text
    assert len(chat.turns) == 1


def test_two_pictures_stand_where_they_were_given(
    chat: Chat, model: FastVLM, questions: dict, picture: Path
) -> None:
    names = list(questions)[:2]
    for name in names:
        chat.ask("Describe the image.", picture.with_name(name), **FEW)
    assert [turn.has_image for turn in chat.turns] == [True, True]
    for turn, name in zip(chat.turns, names, strict=True):
        features = model.encode_image(picture.with_name(name)).array[0]
        np.testing.assert_array_equal(turn.parts[1], features)
    expected = logits_afresh(model, chat)
    assert relative_error(logits_in_chat(model, chat), expected) < 1e-4


def test_turns_can_be_compared(chat: Chat, model: FastVLM, picture: Path) -> None:
    chat.ask("Describe the image.", picture, **FEW)
    with model.chat() as other:
        other.ask("Describe the image.", picture, **FEW)
        assert chat.turns == other.turns


def test_words_alone_begin_a_conversation_too(chat: Chat, picture: Path) -> None:
    alone = chat.ask("Hello", **FEW).prompt_tokens
    chat.reset()
    # An image adds its 16 tokens and the newline behind it.
    assert chat.ask("Hello", picture, **FEW).prompt_tokens == alone + 17


def test_a_picture_asked_about_again_is_not_encoded_again(
    model: FastVLM, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = model.image_encoder
    encoder.forget()
    encoded = []
    encode = encoder.encode_pixel_values
    monkeypatch.setattr(encoder, "encode_pixel_values", lambda p: encoded.append(0) or encode(p))
    for _ in range(2):
        with model.chat() as chat:
            chat.ask("Hi", picture, max_new_tokens=1)
            chat.ask("Hi", picture.read_bytes(), max_new_tokens=1)
    assert len(encoded) == 1


def test_features_may_be_kept_and_given_in_the_pictures_place(
    chat: Chat, model: FastVLM, picture: Path, tmp_path: Path, questions: dict
) -> None:
    made = model.encode_image(picture)
    np.save(tmp_path / "features.npy", made.array)
    features = ImageFeatures(np.load(tmp_path / "features.npy"), made.image_size)
    assert features.digest == made.digest
    prompt, answer = next(iter(questions[picture.name].items()))
    assert model.generate(features, prompt).text == answer
    assert chat.ask(prompt, features).text == answer
    wrong = ImageFeatures(np.zeros((1, 3, 5), np.float32), made.image_size)
    with pytest.raises(InputError, match=r"float32 \[1, 3, 5\], expected float32 \[1, 16, "):
        model.generate(wrong, prompt)
    with pytest.raises(InputError, match=r"int\d+ \[2\], expected float32"):
        model.generate(ImageFeatures([1, 2], made.image_size), prompt)  # type: ignore[arg-type]
    other_size = ImageFeatures(made.array, 512)
    with pytest.raises(InputError, match="of an image of 512 pixels, expected 256"):
        model.generate(other_size, prompt)


# --- a full context ------------------------------------------------------------------------------


def fill(chat: Chat, picture: Path) -> int:
    """Ask until the context is full; how many questions were answered."""
    for number in range(100):
        try:
            chat.ask("Describe the image.", picture, max_new_tokens=8)
        except PromptTooLongError:
            return number
    raise AssertionError("never full")


def test_a_full_context_is_an_error_that_leaves_the_chat_as_it_was(
    chat: Chat, model: FastVLM, picture: Path
) -> None:
    answered = fill(chat, picture)
    assert len(chat.turns) == answered > 2
    with pytest.raises(PromptTooLongError, match="begin another chat, or make it with chat"):
        chat.ask("Describe the image.", picture)
    assert len(chat.turns) == answered
    # The end of the last turn may not fit, so no logits after it are compared.
    cache, language_model = chat.transcript.cache, model.language_model
    assert cache is not None
    afresh = language_model.new_cache(cache.length)
    embeds = language_model.embed(chat.transcript.parts(chat.turns))
    language_model.prefill(embeds[:, : cache.length], afresh)
    found, expected = (each.read(0, cache.length) for each in (cache, afresh))
    assert relative_error(found, expected) < 1e-4


def test_the_oldest_turns_are_dropped_where_that_was_asked_for(
    model: FastVLM, picture: Path, prefilled: list[int]
) -> None:
    chat = model.chat(drop_oldest=True)
    context = model.manifest.decoder.context_length
    for number in range(200):
        chat.ask(f"Question {number}?", picture, max_new_tokens=8)
        if len(chat.turns) < number + 1:
            break
    assert 1 < len(chat.turns) <= number
    assert chat.turns[-1].prompt == f"Question {number}?"
    assert chat.turns[0].prompt != "Question 0?"
    assert prefilled[-1] > prefilled[-2]  # all that is left was prefilled again
    assert chat.transcript.cache is not None
    assert chat.transcript.cache.length <= context
    expected = logits_afresh(model, chat)
    assert relative_error(logits_in_chat(model, chat), expected) < 1e-4


def test_an_answer_of_any_length_leaves_the_turns_that_fit(model: FastVLM, picture: Path) -> None:
    chat = model.chat(drop_oldest=True)
    for _ in range(3):
        chat.ask("Describe the image.", picture, max_new_tokens=1_000_000, stop=["."])
    assert len(chat.turns) == 3


def test_a_question_longer_than_the_context_is_refused_even_so(model: FastVLM) -> None:
    with pytest.raises(PromptTooLongError, match="ask a shorter one"):
        model.chat(drop_oldest=True).ask("word " * 10_000)


# --- bad input -----------------------------------------------------------------------------------


def test_a_closed_chat_says_so(model: FastVLM) -> None:
    with model.chat() as chat:
        chat.ask("Hi", max_new_tokens=1)
    with pytest.raises(InputError, match="the chat is closed; begin another"):
        chat.ask("Hi")


@pytest.mark.parametrize(
    ("text", "image", "options", "words"),
    [
        ("", None, {}, "the prompt is empty"),
        ("Hi", "nowhere.png", {}, "nowhere.png: no such picture"),
        ("Hi", None, {"stop": [""]}, r"stop\[0\] is ''; expected a text that is not empty"),
        ("Hi", None, {"max_new_tokens": 0}, "max_new_tokens is 0"),
    ],
)
def test_a_refused_question_leaves_the_chat_as_it_was(
    chat: Chat,
    model: FastVLM,
    picture: Path,
    text: str,
    image: str | None,
    options: dict,
    words: str,
) -> None:
    chat.ask("Describe the image.", picture, max_new_tokens=3)
    with pytest.raises(InputError, match=words):
        chat.ask(text, image, **options)
    assert len(chat.turns) == 1
    chat.ask("And now?", max_new_tokens=3)
    expected = logits_afresh(model, chat)
    assert relative_error(logits_in_chat(model, chat), expected) < 1e-4
