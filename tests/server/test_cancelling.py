"""Clients that go away, answers that fail, and a server that stops."""

import gc
import json
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
import pytest
from live_server import LiveServer, begun_answer, data_uri, image_part, wait_until

from fastvlm_onnx import FastVLM


def is_idle(server: LiveServer) -> bool:
    stats = server.scheduler.stats()
    return stats.running == stats.waiting == server.uvicorn.state.admission.answers == 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_row(
    serve: Callable[..., LiveServer], stream: bool
) -> None:
    live = serve()
    with begun_answer(live, stream=stream):
        wait_until(lambda: live.scheduler.stats().running == 1)
    wait_until(lambda: is_idle(live), seconds=10)
    stats = live.scheduler.stats()
    assert stats.finished["cancelled"] == 1
    assert stats.generated_tokens < 2000


def test_a_hundred_clients_that_hang_up_leave_no_row_and_no_memory(
    serve: Callable[..., LiveServer],
) -> None:
    live = serve(max_waiting=200, max_per_client=200)

    def hang_up(clients: int) -> int:
        with ExitStack() as stack:
            for number in range(clients):
                stack.enter_context(begun_answer(live, stream=number % 2 == 0))
        wait_until(lambda: is_idle(live), seconds=10)
        gc.collect()
        memory: int = psutil.Process().memory_info().rss
        return memory

    hang_up(20)
    before = hang_up(100)
    after = hang_up(100)
    # On a busy machine, the first answers come to their end before the last client is there.
    finished = live.scheduler.stats().finished
    assert sum(finished.values()) >= 200
    assert finished["cancelled"] >= 100
    # The allocator's noise is some megabytes; a hundred rows that stay would be far more.
    assert after - before < 20_000_000
    assert live.ask("Describe the image.", max_tokens=1).status_code == 200


def test_a_waiting_client_that_goes_away_leaves_the_queue(
    serve: Callable[..., LiveServer],
) -> None:
    live = serve(max_running=1)
    with begun_answer(live):
        wait_until(lambda: live.scheduler.stats().running == 1)
        with begun_answer(live):
            wait_until(lambda: live.scheduler.stats().waiting == 1)
        wait_until(lambda: live.scheduler.stats().waiting == 0, seconds=10)
        assert live.scheduler.stats().running == 1


def test_a_stream_that_waits_long_begins_with_a_comment(
    serve: Callable[..., LiveServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastvlm_onnx.server.completions.PING_SECONDS", 0.05)
    live = serve(max_running=1)
    with begun_answer(live):
        wait_until(lambda: live.scheduler.stats().running == 1)
        answer = live.ask("Describe the image.", stream=True, max_tokens=1)
    assert answer.text.startswith(": waiting\n\n")
    assert answer.text.endswith("data: [DONE]\n\n")


def test_an_answer_that_fails_takes_no_other_with_it(
    server: LiveServer,
    picture: Path,
    questions: dict[str, dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompt, expected = next(iter(questions[picture.name].items()))
    bad = image_part("data:image/jpeg;base64," + data_uri(picture).partition(",")[2][:2000])
    statuses: list[int] = []
    texts: list[str] = []

    def ask(part: dict[str, object]) -> None:
        answer = server.ask([part, {"type": "text", "text": prompt}])
        statuses.append(answer.status_code)
        if answer.status_code == 200:
            texts.append(answer.json()["choices"][0]["message"]["content"])

    parts = [bad, image_part(data_uri(picture))] * 4
    threads = [threading.Thread(target=ask, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] * 4 + [400] * 4
    assert texts == [expected] * 4


def test_an_answer_that_fails_in_its_middle_ends_the_stream_with_an_error(
    serve: Callable[..., LiveServer], served_model: FastVLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = serve()
    decode = served_model.language_model.decode_one_batch_step
    steps = 0

    def fail_at_last(*arguments: object) -> np.ndarray:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise MemoryError("a secret of the server")
        return decode(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(served_model.language_model, "decode_one_batch_step", fail_at_last)
    answer = live.ask("Describe the image.", stream=True, max_tokens=20, ignore_eos=True)
    assert answer.status_code == 200
    *_, last = [line for line in answer.text.split("\n\n") if line]
    error = json.loads(last.removeprefix("data: "))["error"]
    assert error["type"] == "server_error"
    assert "secret" not in answer.text
    # The server goes on.
    assert live.ask("Describe the image.", max_tokens=2).status_code == 200


def test_running_answers_end_in_the_grace_and_no_new_ones_are_taken(
    serve: Callable[..., LiveServer],
) -> None:
    live = serve(grace_seconds=30)
    with begun_answer(live, max_tokens=1000) as client:
        wait_until(lambda: live.scheduler.stats().running == 1)
        live.uvicorn.stop()
        received = b""
        while piece := client.recv(65536):
            received += piece
    assert b"data: [DONE]" in received
    assert b'"finish_reason":"length"' in received


def test_answers_that_outlast_the_grace_are_cancelled(serve: Callable[..., LiveServer]) -> None:
    live = serve(grace_seconds=0.05)
    with begun_answer(live) as client:
        wait_until(lambda: live.scheduler.stats().running == 1)
        live.uvicorn.stop()
        received = b""
        while piece := client.recv(65536):
            received += piece
    assert b"the server stopped before the answer had ended" in received
    assert b"[DONE]" not in received
