"""Facts about the server: /metrics, /health, /v1/models."""

import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from live_server import LiveServer, data_uri, image_part, live_server, service_of, wait_until
from prometheus_client.parser import text_string_to_metric_families

from fastvlm_onnx import FastVLM
from fastvlm_onnx.server.service import Service


def metrics_of(server: LiveServer) -> dict[str, float]:
    """Value by name without our prefix; labels are part of the name."""
    return {
        sample.name.removeprefix("fastvlm_onnx:")
        + "".join(f"[{value}]" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(server.get("/metrics").text)
        for sample in family.samples
    }


def test_metrics_have_the_names_of_vllm(server: LiveServer) -> None:
    server.ask("Describe the image.", max_tokens=2)
    text = server.get("/metrics").text
    names = set(re.findall(r"^# TYPE fastvlm_onnx:(\S+)", text, re.MULTILINE))
    assert {
        "num_requests_running",
        "num_requests_waiting",
        "prompt_tokens_total",
        "generation_tokens_total",
        "prefix_cache_queries_total",
        "prefix_cache_hits_total",
        "time_to_first_token_seconds",
        "time_per_output_token_seconds",
        "e2e_request_latency_seconds",
        "request_success_total",
    } <= names


def test_metrics_count_answers_tokens_and_cached_positions(
    serve: Callable[..., LiveServer], picture: Path
) -> None:
    live = serve()
    content = [image_part(data_uri(picture)), {"type": "text", "text": "How large is it?"}]
    before = metrics_of(live)
    usages = [live.ask(content, max_tokens=3).json()["usage"] for _ in range(2)]
    after = metrics_of(live)
    assert after["prompt_tokens_total"] == sum(usage["prompt_tokens"] for usage in usages)
    generated = sum(usage["completion_tokens"] for usage in usages)
    assert after["generation_tokens_total"] == generated
    assert after["time_to_first_token_seconds_count"] == 2
    assert after["http_responses_total[/v1/chat/completions][200]"] == 2
    cached = usages[1]["prompt_tokens_details"]["cached_tokens"]
    assert cached > 0
    hits = after["prefix_cache_hits_total"] - before["prefix_cache_hits_total"]
    assert hits >= cached
    assert 0 < after["prefix_cache_bytes"] <= after["prefix_cache_max_bytes"]
    assert after["image_cache_hits_total"] > before["image_cache_hits_total"]


def test_a_scanners_paths_make_no_metric_each(server: LiveServer) -> None:
    server.get("/wp-admin/secret")
    assert "wp-admin" not in server.get("/metrics").text


def test_health_is_503_until_the_model_is_loaded(served_model: FastVLM) -> None:
    may_load = threading.Event()

    def open_slowly() -> Service:
        may_load.wait()
        return service_of(served_model)

    with live_server(open_slowly) as live:
        for answer in (live.get("/health"), live.get("/v1/models"), live.ask("What?")):
            assert answer.status_code == 503
            assert answer.json()["error"]["message"] == "Loading model"
            assert int(answer.headers["Retry-After"]) >= 1
        may_load.set()
        wait_until(lambda: live.get("/health").status_code == 200)
        assert live.get("/health").json() == {"status": "ok"}


def test_chunks_are_sent_at_once(server: LiveServer) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))):
        connections = server.uvicorn.server_state.connections
        wait_until(lambda: bool(connections))
        sockets = [one.transport.get_extra_info("socket") for one in list(connections)]
        flags = [one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for one in sockets]
        assert all(flags)


def test_a_model_that_does_not_open_stops_the_server() -> None:
    def fail() -> Service:
        raise ValueError("no such model")

    with live_server(fail) as live:
        wait_until(lambda: live.uvicorn.should_exit)
        assert str(live.uvicorn.state.failure) == "no such model"


def test_the_model_is_listed_with_its_facts(server: LiveServer, served_model: FastVLM) -> None:
    (card,) = server.get("/v1/models").json()["data"]
    assert card == server.get("/v1/models/demo").json()
    assert card["precision"] == served_model.precision
    assert card["context_length"] == served_model.language_model.sizes.context_length
    assert server.get("/v1/models/other").status_code == 404
