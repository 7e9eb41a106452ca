"""Fields of a chat request: which are taken, ignored and refused, and how pictures come."""

import base64
import io
import json
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from live_server import LiveServer, data_uri, image_part, wait_until
from PIL import Image

QUESTION = {"role": "user", "content": "Describe the image."}


def error_of(server: LiveServer, body: Any, status: int = 400) -> dict[str, Any]:
    """The error that a body gets; a text is sent as it is."""
    content = body if isinstance(body, str | bytes) else json.dumps(body)
    answer = server.post("/v1/chat/completions", content=content)
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"].endswith(".")
    return error


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1),
        ("temperature", "1"),
        ("top_p", 0),
        ("top_k", -1),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("n", 0),
        ("n", 9),
        ("stop", [""]),
        ("stop", ["x"] * 17),
        ("top_logprobs", 3),
        ("logprobs", 1),
        ("stream", "yes"),
        ("image_size", 512),
        ("response_format", {"type": "xml"}),
        ("messages", []),
        ("messages", "What?"),
        ("user", 5),
    ],
)
def test_a_wrong_field_is_named(server: LiveServer, field: str, value: Any) -> None:
    error = error_of(server, {"messages": [QUESTION], field: value})
    assert error["param"].split(".")[0] == field
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "x"}, "messages.0.role"),
        ({"role": "user"}, "messages.0.content"),
        ({"role": "user", "content": 5}, "messages.0.content"),
        ({"role": "user", "content": [{"type": "audio"}]}, "messages.0.content.0"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages.0.content.0.text"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
            "messages.0.content.0.image_url.url",
        ),
    ],
)
def test_a_wrong_field_of_a_message_is_named(
    server: LiveServer, message: dict[str, Any], param: str
) -> None:
    assert error_of(server, {"messages": [message]})["param"] == param


@pytest.mark.parametrize("body", ["", "{", "[]", "nonsense", b"\xff", "[" * 100_000])
def test_a_body_that_is_no_object_is_refused(server: LiveServer, body: str | bytes) -> None:
    error_of(server, body)


def test_a_body_of_too_many_json_values_is_refused(server: LiveServer) -> None:
    body = {"messages": [QUESTION], "metadata": [0] * 300_000}
    assert error_of(server, body, 413)["code"] == "too_many_values"


def test_a_wrong_value_of_megabytes_is_shortened_in_the_error(server: LiveServer) -> None:
    error = error_of(server, {"messages": [QUESTION], "temperature": "x" * 1_000_000})
    assert len(error["message"]) < 300


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "Be brief."}],
        [{"role": "user", "content": ""}, {"role": "assistant", "content": [image_part("see:x")]}],
    ],
)
def test_a_conversation_without_a_question_is_refused(
    server: LiveServer, messages: list[Any]
) -> None:
    assert error_of(server, {"messages": messages})["type"] == "invalid_request_error"


@pytest.fixture
def log_facts() -> Iterator[list[dict[str, Any]]]:
    """The facts that the servers log."""
    facts: list[dict[str, Any]] = []
    handler = logging.Handler()
    handler.emit = lambda record: facts.append(record.facts)  # type: ignore[attr-defined, method-assign]
    logger = logging.getLogger("fastvlm_onnx.server.requests")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield facts
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_unknown_fields_are_ignored_and_logged(
    server: LiveServer, log_facts: list[dict[str, Any]]
) -> None:
    answer = server.ask(
        "Describe the image.", max_tokens=1, frequency_penalty=0.5, tools=[], name="x"
    )
    assert answer.status_code == 200
    # The line comes after the response.
    wait_until(lambda: len(log_facts) == 1)
    (facts,) = log_facts
    assert facts["ignored_fields"] == ["frequency_penalty", "name", "tools"]
    assert facts["status"] == 200
    assert facts["completion_tokens"] == 1


def test_prompts_are_logged_only_where_the_settings_ask_for_it(
    server: LiveServer, serve: Callable[..., LiveServer], log_facts: list[dict[str, Any]]
) -> None:
    for number, live in enumerate((server, serve(log_prompts=True)), 1):
        live.ask("Describe the image.", max_tokens=1)
        # The line comes after the response.
        wait_until(lambda number=number: len(log_facts) == number)  # type: ignore[misc]
    without, with_prompt = log_facts
    assert "Describe" not in str(without)
    assert with_prompt["prompt"] == ["user: Describe the image."]
    assert len(with_prompt["answers"]) == 1


def test_the_image_size_of_the_model_is_taken(server: LiveServer) -> None:
    (card,) = server.get("/v1/models").json()["data"]
    answer = server.ask("Describe the image.", max_tokens=1, image_size=card["image_size"])
    assert answer.status_code == 200


def test_an_answer_names_its_timings(server: LiveServer, picture: Path) -> None:
    content = [image_part(data_uri(picture)), {"type": "text", "text": "How many?"}]
    body = server.ask(content, max_tokens=3).json()
    timings, usage = body["timings"], body["usage"]
    assert timings["cache_n"] == usage["prompt_tokens_details"]["cached_tokens"]
    assert timings["prompt_n"] + timings["cache_n"] == usage["prompt_tokens"]
    assert timings["predicted_n"] == 3
    assert 0 < timings["prompt_ms"] <= timings["first_token_ms"]


def test_a_stream_ends_with_timings_and_done(server: LiveServer) -> None:
    answer = server.ask("Describe the image.", max_tokens=2, stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *_, last, done = [line for line in answer.text.split("\n\n") if line]
    assert done == "data: [DONE]"
    assert json.loads(last.removeprefix("data: "))["timings"]["predicted_n"] == 2


# --- pictures ------------------------------------------------------------------------------------


def content_of(server: LiveServer, url: str, prompt: str) -> str:
    answer = server.ask([image_part(url), {"type": "text", "text": prompt}])
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


@pytest.fixture
def question(picture: Path, questions: dict[str, dict[str, str]]) -> tuple[str, str]:
    return next(iter(questions[picture.name].items()))


@pytest.mark.parametrize("form", ["plain", "no padding", "url-safe", "percent", "capitals"])
def test_data_uris_work_in_the_forms_that_clients_send(
    server: LiveServer, picture: Path, question: tuple[str, str], form: str
) -> None:
    data = base64.b64encode(picture.read_bytes()).decode()
    uri = {
        "plain": f"data:image/jpeg;base64,{data}",
        "no padding": f"data:;base64,{data.rstrip('=')}",
        "url-safe": f"data:image/jpeg;base64,{data.replace('+', '-').replace('/', '_')}",
        "percent": f"data:image/jpeg;base64,{quote(data, safe='')}",
        "capitals": f"DATA:image/jpeg;charset=utf-8;BASE64,{data}",
    }[form]
    assert content_of(server, uri, question[0]) == question[1]


def test_an_image_url_may_be_a_text(
    server: LiveServer, picture: Path, question: tuple[str, str]
) -> None:
    part = {"type": "image_url", "image_url": data_uri(picture)}
    answer = server.ask([part, {"type": "text", "text": question[0]}])
    assert answer.json()["choices"][0]["message"]["content"] == question[1]


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("data:image/png;base64,", "invalid_data_uri"),
        ("data:image/png;base64,!!!!", "invalid_data_uri"),
        ("data:image/png,text", "invalid_data_uri"),
        ("data:", "invalid_data_uri"),
        ("data:image/png;base64,aGVsbG8=", "invalid_image"),
        ("ftp://host/a.png", "invalid_image_url"),
        ("/etc/passwd", "invalid_image_url"),
        ("file:///etc/passwd", "file_url_not_allowed"),
        ("javascript:alert(1)", "invalid_image_url"),
    ],
)
def test_an_image_url_that_cannot_be_read_is_refused(
    server: LiveServer, url: str, code: str
) -> None:
    body = {"messages": [{"role": "user", "content": [image_part(url)]}]}
    assert error_of(server, body)["code"] == code


@pytest.mark.parametrize("stream", [False, True])
def test_a_picture_that_is_cut_off_is_an_error_of_http(
    server: LiveServer, picture: Path, stream: bool
) -> None:
    cut = base64.b64encode(picture.read_bytes()[:1500]).decode()
    part = image_part(f"data:image/jpeg;base64,{cut}")
    answer = server.ask([part, {"type": "text", "text": "What?"}], stream=stream)
    assert answer.status_code == 400
    assert "cut off or damaged" in answer.json()["error"]["message"]


@pytest.fixture
def media(
    serve: Callable[..., LiveServer], picture: Path, tmp_path: Path
) -> tuple[LiveServer, Path]:
    """A server with a media folder that holds a picture, and a link out of the folder."""
    root = tmp_path / "media"
    root.mkdir()
    (root / "a picture.jpg").write_bytes(picture.read_bytes())
    (tmp_path / "secret.jpg").write_bytes(picture.read_bytes())
    (root / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "large.jpg").write_bytes(picture.read_bytes() + bytes(200_000))
    return serve(media_root=root, fetch_mb=0.2), root


def test_a_file_of_the_media_folder_is_read(
    media: tuple[LiveServer, Path], question: tuple[str, str]
) -> None:
    server, root = media
    url = (root / "a picture.jpg").as_uri()
    assert "%20" in url
    assert content_of(server, url, question[0]) == question[1]


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.jpg",
        "/%2e%2e/secret.jpg",
        "/link.jpg",
        "/missing.jpg",
        "",
        "/large.jpg",
        "/%00",
        "/x/../../secret.jpg",
    ],
)
def test_no_other_file_is_read(media: tuple[LiveServer, Path], path: str) -> None:
    server, root = media
    for url in (f"file://{root}{path}", f"file://host{root}/a%20picture.jpg"):
        body = {"messages": [{"role": "user", "content": [image_part(url)]}]}
        expected = "image_too_large" if "large" in url else "file_url_not_found"
        assert error_of(server, body)["code"] == expected


# --- see -----------------------------------------------------------------------------------------


def test_a_seen_picture_is_asked_about_by_its_id(
    server: LiveServer, picture: Path, question: tuple[str, str]
) -> None:
    # Shades of the same picture, so that no other test's answer is in the cache.
    with Image.open(picture) as opened:
        shade = opened.convert("RGB").point(lambda value: value ^ 1)
    file = io.BytesIO()
    shade.save(file, "PNG")
    seen = server.post(
        "/v1/see", content=file.getvalue(), headers={"Content-Type": "image/png"}
    ).json()
    assert seen["object"] == "see"
    assert seen["expires_at"] > seen["created"]
    answer = server.ask([image_part(seen["id"]), {"type": "text", "text": question[0]}]).json()
    assert answer["choices"][0]["message"]["content"] == question[1]
    assert answer["timings"]["cache_n"] >= seen["image_tokens"]
    assert answer["timings"]["vision_ms"] == 0


def test_see_takes_the_url_of_a_picture_too(server: LiveServer, picture: Path) -> None:
    seen = server.post("/v1/see", json={"image": data_uri(picture)})
    assert seen.status_code == 200
    assert seen.json()["id"].startswith("see:")


def test_a_text_before_a_seen_picture_keeps_its_features(server: LiveServer, picture: Path) -> None:
    seen = server.post("/v1/see", json={"image": data_uri(picture)}).json()
    content = [{"type": "text", "text": "Look:"}, image_part(seen["id"])]
    answer = server.ask([*content, {"type": "text", "text": "What is it?"}], max_tokens=2).json()
    assert answer["timings"]["vision_ms"] == 0
    assert answer["timings"]["prompt_n"] >= seen["image_tokens"]


def test_an_expired_id_is_not_found(serve: Callable[..., LiveServer], picture: Path) -> None:
    live = serve(see_seconds=0.01)
    seen = live.post("/v1/see", json={"image": data_uri(picture)}).json()
    threading.Event().wait(0.05)
    answer = live.ask([image_part(seen["id"]), {"type": "text", "text": "What?"}])
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "see_not_found"


@pytest.mark.parametrize(
    ("kind", "content", "code"),
    [
        ("image/png", b"text", "invalid_image"),
        ("image/png", b"", "invalid_image"),
        ("text/plain", b"text", "invalid_content_type"),
        ("application/json", b"{}", "missing_field"),
        ("application/json", b'{"image": "see:x"}', "invalid_image_url"),
    ],
)
def test_see_refuses_what_is_no_picture(
    server: LiveServer, kind: str, content: bytes, code: str
) -> None:
    answer = server.post("/v1/see", content=content, headers={"Content-Type": kind})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == code
