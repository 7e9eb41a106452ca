"""Limits of the server: large bodies, many parts, long prompts, long queues."""

import io
import socket
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import httpx
import openai
import pytest
from live_server import LiveServer, begun_answer, image_part, wait_until
from PIL import Image

from fastvlm_onnx.server.admission import Admission, client_of
from fastvlm_onnx.server.errors import ApiError
from fastvlm_onnx.server.settings import Settings


def error_of(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    code: str = answer.json()["error"]["code"]
    return code


# --- bodies --------------------------------------------------------------------------------------


def test_a_body_that_says_it_is_too_large_is_refused(serve: Callable[..., LiveServer]) -> None:
    live = serve(max_body_mb=0.1)
    assert error_of(live.ask("x" * 200_000), 413) == "body_too_large"
    assert live.ask("Describe the image.", max_tokens=1).status_code == 200


def test_a_body_that_grows_too_large_is_refused_while_it_comes(
    serve: Callable[..., LiveServer],
) -> None:
    live = serve(max_body_mb=0.1)
    pieces = (b" " * 10_000 for _ in range(20))  # httpx sends no Content-Length for them
    answer = live.post("/v1/chat/completions", content=pieces)
    assert error_of(answer, 413) == "body_too_large"


def test_a_body_that_does_not_come_is_given_up(serve: Callable[..., LiveServer]) -> None:
    live = serve(body_seconds=0.2)
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as client:
        client.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\n"
            "Content-Length: 100\r\n\r\n{".encode()
        )
        assert b" 408 " in client.recv(4096).partition(b"\r\n")[0]
    wait_until(lambda: live.uvicorn.state.admission.answers == 0)


def test_all_bodies_together_have_a_limit() -> None:
    admission = Admission(Settings(max_buffered_mb=0.001))
    with admission.admit("a") as first, admission.admit("b") as second:
        first.add_bytes(600)
        with pytest.raises(ApiError) as caught:
            second.add_bytes(600)
        assert (caught.value.status, caught.value.code) == (429, "out_of_buffers")
        first.release()
        second.add_bytes(600)
    assert admission.buffered_bytes == 0


# --- the content of a request --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "content"),
    [
        ({"max_parts": 2}, [{"type": "text", "text": "x"}] * 3),
        ({"max_images": 1}, [image_part("see:a"), image_part("see:b")]),
        ({"max_characters": 10}, "What is it?"),
    ],
)
def test_a_request_has_limits_that_are_checked_before_pictures_are_read(
    serve: Callable[..., LiveServer], settings: dict[str, Any], content: Any
) -> None:
    assert error_of(serve(**settings).ask(content), 400) == "too_many"


def test_pixels_are_counted_in_the_header(serve: Callable[..., LiveServer]) -> None:
    live = serve(max_pixels=100 * 100)
    for side, status in ((100, 200), (101, 400)):
        file = io.BytesIO()
        Image.new("RGB", (side, 100)).save(file, "PNG")
        for kind in ("image/png", "application/octet-stream"):
            seen = live.post("/v1/see", content=file.getvalue(), headers={"Content-Type": kind})
            assert seen.status_code == status


def test_a_decompression_bomb_is_refused_by_its_header(server: LiveServer) -> None:
    file = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(file, "PNG")
    bomb = file.getvalue()
    assert len(bomb) < 100_000
    answer = server.post("/v1/see", content=bomb, headers={"Content-Type": "image/png"})
    assert error_of(answer, 400) == "invalid_image"
    assert "100" in answer.json()["error"]["message"]


def test_prompt_and_answer_have_limits_of_their_own(serve: Callable[..., LiveServer]) -> None:
    live = serve(max_prompt_tokens=60, max_answer_tokens=2)
    answer = live.ask("Describe the image.", max_tokens=100).json()
    assert answer["usage"]["completion_tokens"] == 2
    assert error_of(live.ask("Describe the image. " * 10), 400) == "context_length_exceeded"


# --- many requests -------------------------------------------------------------------------------


def test_a_full_queue_is_the_clients_rate_limit_error(serve: Callable[..., LiveServer]) -> None:
    live = serve(max_running=1, max_waiting=1)
    client = live.openai()
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(begun_answer(live))
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(
                model="demo", messages=[{"role": "user", "content": "What?"}], max_tokens=1
            )
        assert caught.value.code == "queue_full"
        assert int(caught.value.response.headers["Retry-After"]) >= 1
        # Other requests are taken.
        assert live.get("/v1/models").status_code == 200
    wait_until(lambda: live.uvicorn.state.admission.answers == 0)
    assert live.ask("What?", max_tokens=1).status_code == 200


def test_all_answers_of_a_request_count(serve: Callable[..., LiveServer]) -> None:
    live = serve(max_running=1, max_waiting=2)
    assert live.ask("What?", n=3, max_tokens=1).status_code == 429
    assert live.ask("What?", n=2, max_tokens=1).status_code == 200


def test_a_client_has_a_number_of_answers_at_once() -> None:
    admission = Admission(Settings(max_per_client=2))
    with admission.admit("10.0.0.1") as ticket:
        ticket.add_answers(1)
        with pytest.raises(ApiError) as caught, admission.admit("10.0.0.1"):
            pass
        assert (caught.value.status, caught.value.code) == (429, "too_many_answers")
        with admission.admit("10.0.0.2"):
            assert admission.answers == 3
    assert admission.answers == 0
    assert not admission.answers_of


def test_a_trusted_proxy_names_its_clients(serve: Callable[..., LiveServer]) -> None:
    forwarded = {"X-Forwarded-For": "10.0.0.9"}
    for proxies, status in (((), 429), (("127.0.0.1",), 200)):
        live = serve(trusted_proxies=proxies, max_per_client=1)
        body = {"messages": [{"role": "user", "content": "What?"}], "max_tokens": 1}
        with begun_answer(live):
            answer = live.post("/v1/chat/completions", json=body, headers=forwarded)
            assert answer.status_code == status


def test_clients_of_one_ipv6_network_are_one_client() -> None:
    assert client_of("2001:db8::1") == client_of("2001:db8::2:3%eth0") != client_of("2001:db9::1")
    assert client_of("10.0.0.1") != client_of("10.0.0.2")
    assert client_of("") == ""


def test_an_answer_ends_at_its_time(serve: Callable[..., LiveServer]) -> None:
    live = serve(max_seconds=0.3)
    answer = live.ask("Describe the image.", max_tokens=2000, ignore_eos=True)
    if answer.status_code == 503:  # on a busy machine the prompt was not even begun
        assert "time ended in the queue" in answer.json()["error"]["message"]
        return
    (choice,) = answer.json()["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "time")
    assert answer.json()["usage"]["completion_tokens"] < 2000
