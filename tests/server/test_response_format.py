"""`response_format`: answers that are JSON, of a schema or of none."""

import json
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from live_server import LiveServer, data_uri, image_part
from pydantic import BaseModel

COLORS = ["orange", "pink", "brown", "green", "blue", "red", "white", "yellow", "purple"]
SCHEMA = {
    "type": "object",
    "properties": {
        "color": {"enum": COLORS},
        "count": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["color", "count"],
    "additionalProperties": False,
}
FORMAT: Any = {
    "type": "json_schema",
    "json_schema": {"name": "drawing", "schema": SCHEMA, "strict": True},
}


class Drawing(BaseModel):
    color: Literal["orange", "pink", "brown"]
    is_large: bool


@pytest.fixture
def messages(picture: Path) -> list[Any]:
    content = [image_part(data_uri(picture)), {"type": "text", "text": "Describe the image."}]
    return [{"role": "user", "content": content}]


def is_of_schema(text: str | None) -> bool:
    found = json.loads(text or "")
    return bool(
        found.keys() == {"color", "count"} and found["color"] in COLORS and 1 <= found["count"] <= 9
    )


def test_an_answer_has_the_form_of_the_schema(server: LiveServer, messages: list[Any]) -> None:
    answer = server.openai().chat.completions.create(
        model="demo", messages=messages, response_format=FORMAT
    )
    assert is_of_schema(answer.choices[0].message.content)
    assert answer.choices[0].finish_reason == "stop"


def test_drawn_and_streamed_answers_have_the_form_too(
    server: LiveServer, messages: list[Any]
) -> None:
    texts = dict.fromkeys(range(3), "")
    for chunk in server.openai().chat.completions.create(
        model="demo",
        messages=messages,
        response_format=FORMAT,
        n=3,
        temperature=1.5,
        seed=1,
        stream=True,
    ):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert all(map(is_of_schema, texts.values()))


def test_the_clients_parse_gives_an_object_of_its_class(
    server: LiveServer, messages: list[Any]
) -> None:
    answer = server.openai().chat.completions.parse(
        model="demo", messages=messages, response_format=Drawing
    )
    assert isinstance(answer.choices[0].message.parsed, Drawing)


def test_json_object_is_any_object(server: LiveServer, messages: list[Any]) -> None:
    answer = server.openai().chat.completions.create(
        model="demo", messages=messages, response_format={"type": "json_object"}
    )
    text = answer.choices[0].message.content or ""
    assert text.startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


def test_an_answer_of_a_schema_that_is_cut_says_so(server: LiveServer, messages: list[Any]) -> None:
    answer = server.openai().chat.completions.create(
        model="demo", messages=messages, response_format=FORMAT, max_tokens=2
    )
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"type": "object", "properties": 5},
        {"type": "string", "pattern": "("},
        {"enum": ["x" * 10] * 100_000},
    ],
)
def test_a_schema_that_cannot_be_used_is_refused(
    server: LiveServer, messages: list[Any], schema: dict[str, Any]
) -> None:
    bad: Any = {"type": "json_schema", "json_schema": {"name": "bad", "schema": schema}}
    with pytest.raises(openai.BadRequestError) as caught:
        server.openai().chat.completions.create(
            model="demo", messages=messages, response_format=bad
        )
    assert caught.value.param == "response_format"
    assert caught.value.code == "invalid_schema"


def test_a_format_without_its_schema_is_refused(server: LiveServer, messages: list[Any]) -> None:
    bad: Any = {"type": "json_schema"}
    with pytest.raises(openai.BadRequestError) as caught:
        server.openai().chat.completions.create(
            model="demo", messages=messages, response_format=bad
        )
    assert caught.value.code == "missing_field"
