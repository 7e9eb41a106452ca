"""The real `openai` client against the server."""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from live_server import LiveServer, data_uri, image_part

import fastvlm_onnx
from fastvlm_onnx import FastVLM

PICTURES = Path(fastvlm_onnx.__file__).parent / "demo/pictures"


@pytest.fixture
def client(server: LiveServer) -> openai.OpenAI:
    return server.openai()


@pytest.fixture
def question(picture: Path, questions: dict[str, dict[str, str]]) -> tuple[str, str]:
    """A question about `picture`, and the right answer."""
    return next(iter(questions[picture.name].items()))


def about(picture: Path, prompt: str) -> list[Any]:
    content = [image_part(data_uri(picture)), {"type": "text", "text": prompt}]
    return [{"role": "user", "content": content}]


def test_the_client_lists_the_model(client: openai.OpenAI) -> None:
    (listed,) = client.models.list()
    assert listed.id == "demo"
    assert client.models.retrieve("demo").owned_by == "fastvlm-onnx"


def test_a_question_about_a_data_uri_gets_the_models_answer(
    client: openai.OpenAI, picture: Path, question: tuple[str, str], model: FastVLM
) -> None:
    answer = client.chat.completions.create(model="demo", messages=about(picture, question[0]))
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == question[1] == model.generate(picture, question[0]).text
    assert choice.finish_reason == "stop"
    assert answer.object == "chat.completion"


def test_usage_counts_the_tokens_of_the_model(
    client: openai.OpenAI, picture: Path, question: tuple[str, str], model: FastVLM
) -> None:
    expected = model.generate(picture, question[0])
    usage = client.chat.completions.create(model="demo", messages=about(picture, question[0])).usage
    assert usage is not None
    assert usage.prompt_tokens == expected.prompt_tokens
    assert usage.completion_tokens == len(expected.token_ids)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_stream_has_the_same_text_in_pieces(
    client: openai.OpenAI, picture: Path, question: tuple[str, str]
) -> None:
    chunks = list(
        client.chat.completions.create(
            model="demo",
            messages=about(picture, question[0]),
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *pieces, last = chunks
    assert all(len(chunk.choices) == 1 for chunk in pieces)
    deltas = [chunk.choices[0].delta for chunk in pieces]
    assert [delta.role for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    assert "".join(delta.content or "" for delta in deltas) == question[1]
    assert [chunk.choices[0].finish_reason for chunk in pieces][-2:] == [None, "stop"]
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens > 0
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_without_usage_has_a_choice_in_every_chunk(client: openai.OpenAI) -> None:
    chunks = client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "Describe the image."}], stream=True
    )
    assert all(len(chunk.choices) == 1 and chunk.usage is None for chunk in chunks)


def test_several_turns_begin_at_the_cached_prefix(
    client: openai.OpenAI, picture: Path, questions: dict[str, dict[str, str]], model: FastVLM
) -> None:
    (first, answer), (second, _), *_ = questions[picture.name].items()
    messages = about(picture, first)
    begun = client.chat.completions.create(model="demo", messages=messages)
    assert begun.choices[0].message.content == answer
    messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": second}]
    more = client.chat.completions.create(model="demo", messages=messages)
    with model.chat() as chat:
        chat.ask(first, picture)
        assert more.choices[0].message.content == chat.ask(second).text
    assert begun.usage is not None
    assert more.usage is not None
    assert more.usage.prompt_tokens_details is not None
    cached = more.usage.prompt_tokens_details.cached_tokens
    assert cached is not None
    assert cached >= begun.usage.prompt_tokens


def test_clients_in_company_get_the_answers_that_they_get_alone(
    client: openai.OpenAI, questions: dict[str, dict[str, str]]
) -> None:
    asked = [
        (PICTURES / name, prompt, answer)
        for name, of_picture in questions.items()
        for prompt, answer in of_picture.items()
    ]

    def text_of(one: tuple[Path, str, str]) -> str | None:
        answer = client.chat.completions.create(model="demo", messages=about(one[0], one[1]))
        return answer.choices[0].message.content

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(text_of, asked)) == [answer for _, _, answer in asked]


def test_a_system_message_is_part_of_the_prompt(client: openai.OpenAI) -> None:
    question = {"role": "user", "content": "Describe the image."}
    counts = []
    for system in ("Be brief.", "Be brief. Be brief. Be brief."):
        messages: Any = [{"role": "system", "content": system}, question]
        answer = client.chat.completions.create(model="demo", messages=messages, max_tokens=1)
        assert answer.usage is not None
        counts.append(answer.usage.prompt_tokens)
    assert counts[0] < counts[1]


def test_two_pictures_are_two_pictures_of_the_prompt(
    client: openai.OpenAI, picture: Path, model: FastVLM
) -> None:
    content: Any = [image_part(data_uri(picture))] * 2 + [{"type": "text", "text": "What?"}]
    answer = client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": content}], max_tokens=4
    )
    expected = model.generate([picture, picture], "What?", max_new_tokens=4)
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == expected.finish_reason


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_client_limits_the_answers_length(client: openai.OpenAI, name: str) -> None:
    options: Any = {name: 2}
    answer = client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "Describe the image."}], **options
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2
    assert answer.choices[0].finish_reason == "length"


def test_a_stop_text_ends_the_answer_before_it(
    client: openai.OpenAI, picture: Path, question: tuple[str, str]
) -> None:
    stop = question[1].split()[2]
    answer = client.chat.completions.create(
        model="demo", messages=about(picture, question[0]), stop=stop
    )
    assert answer.choices[0].message.content == question[1].partition(stop)[0].rstrip()
    assert answer.choices[0].finish_reason == "stop"


def test_n_answers_differ_by_their_draws_and_repeat_with_the_seed(client: openai.OpenAI) -> None:
    # Without an image the model is unsure, so that draws differ.
    messages: list[Any] = [{"role": "user", "content": "Describe the image."}]

    def texts(seed: int) -> list[str | None]:
        answer = client.chat.completions.create(
            model="demo",
            messages=messages,
            n=4,
            temperature=2.0,
            seed=seed,
            max_tokens=12,
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        return [choice.message.content for choice in answer.choices]

    drawn = texts(1)
    assert len(set(drawn)) > 1
    assert texts(1) == drawn
    assert texts(-5) != drawn


def test_n_streamed_answers_come_with_their_index(client: openai.OpenAI, picture: Path) -> None:
    chunks = client.chat.completions.create(
        model="demo",
        messages=about(picture, "Describe the image."),
        n=3,
        max_tokens=4,
        stream=True,
    )
    ended = [
        chunk.choices[0].index for chunk in chunks if chunk.choices[0].finish_reason is not None
    ]
    assert sorted(ended) == [0, 1, 2]


def test_logprobs_name_each_token_and_the_likeliest_others(
    client: openai.OpenAI, picture: Path, question: tuple[str, str]
) -> None:
    answer = client.chat.completions.create(
        model="demo", messages=about(picture, question[0]), logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(token.token for token in logprobs.content).strip() == question[1]
    for token in logprobs.content:
        assert bytes(token.bytes or []).decode() == token.token
        assert len(token.top_logprobs) == 3
        # A greedy answer takes the likeliest token.
        assert token.top_logprobs[0].logprob == token.logprob <= 0
        assert sum(math.exp(top.logprob) for top in token.top_logprobs) <= 1 + 1e-9


def test_streamed_logprobs_are_those_of_the_whole_answer(
    client: openai.OpenAI, picture: Path, question: tuple[str, str]
) -> None:
    messages = about(picture, question[0])
    whole = client.chat.completions.create(model="demo", messages=messages, logprobs=True)
    tokens = [
        token.token
        for chunk in client.chat.completions.create(
            model="demo", messages=messages, logprobs=True, stream=True
        )
        if chunk.choices[0].logprobs is not None
        for token in chunk.choices[0].logprobs.content or ()
    ]
    assert whole.choices[0].logprobs is not None
    assert tokens == [token.token for token in whole.choices[0].logprobs.content or ()]


# --- errors --------------------------------------------------------------------------------------


def test_a_wrong_field_is_the_clients_bad_request_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "What?"}], temperature=3
        )
    assert caught.value.param == "temperature"
    assert caught.value.type == "invalid_request_error"
    assert caught.value.code == "invalid_value"


def test_a_prompt_that_is_too_long_is_the_clients_bad_request_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "What? " * 4000}]
        )
    assert caught.value.code == "context_length_exceeded"


def test_another_model_is_the_clients_not_found_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(
            model="gpt-5", messages=[{"role": "user", "content": "What?"}]
        )
    assert caught.value.code == "model_not_found"


def test_an_unknown_see_id_is_the_clients_not_found_error(client: openai.OpenAI) -> None:
    content: Any = [image_part("see:nothing"), {"type": "text", "text": "What?"}]
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": content}]
        )
    assert caught.value.code == "see_not_found"
