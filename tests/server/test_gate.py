"""The checks before a request is read: key, host, origin; and paths that are open to all."""

import re
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from live_server import LiveServer

KEY = "sk-of-this-test"
GUARDED = ["/v1/models", "/v1/models/demo", "/metrics", "/docs", "/openapi.json", "/nowhere"]


@pytest.fixture
def locked(serve: Callable[..., LiveServer]) -> LiveServer:
    return serve(api_key=KEY)


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer wrong", f"Basic {KEY}", KEY, "Bearer ä"])
def test_every_path_but_health_asks_for_the_key(locked: LiveServer, given: str) -> None:
    headers = {"Authorization": given.encode()} if given else {}
    for path in GUARDED:
        answer = locked.get(path, headers=headers)
        assert answer.status_code == 401, path
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "invalid_api_key"
    for path in ("/v1/chat/completions", "/v1/see", "/health"):
        assert locked.post(path, headers=headers).status_code == 401
    assert locked.get("/health", headers=headers).status_code == 200


def test_the_key_opens_every_path(locked: LiveServer) -> None:
    headers = {"Authorization": f"bearer {KEY}"}
    statuses = [locked.get(path, headers=headers).status_code for path in GUARDED]
    assert statuses == [200] * 5 + [404]


def test_a_wrong_key_is_the_clients_authentication_error(locked: LiveServer) -> None:
    with pytest.raises(openai.AuthenticationError):
        locked.openai().models.list()
    assert locked.openai().with_options(api_key=KEY).models.list().data


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost.evil.example", ""])
def test_a_name_that_another_site_points_here_is_refused(server: LiveServer, host: str) -> None:
    answer = server.get("/v1/models", headers={"Host": host})
    assert answer.status_code in (400, 403)
    if answer.status_code == 403:
        assert answer.json()["error"]["code"] == "host_not_allowed"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000"])
def test_names_of_this_machine_are_accepted(server: LiveServer, host: str) -> None:
    assert server.get("/v1/models", headers={"Host": host}).status_code == 200


def test_further_hosts_are_accepted_where_they_are_allowed(
    serve: Callable[..., LiveServer], locked: LiveServer
) -> None:
    live = serve(allow_hosts=("camera.home",))
    assert live.get("/v1/models", headers={"Host": "camera.home"}).status_code == 200
    assert live.get("/v1/models", headers={"Host": "evil.example"}).status_code == 403
    headers = {"Host": "any.example", "Authorization": f"Bearer {KEY}"}
    assert locked.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1"])
def test_a_page_of_another_origin_is_refused(server: LiveServer, origin: str) -> None:
    message = {"messages": [{"role": "user", "content": "What?"}]}
    answer = server.post("/v1/chat/completions", json=message, headers={"Origin": origin})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "origin_not_allowed"
    assert "access-control-allow-origin" not in answer.headers


def test_a_page_of_the_server_itself_is_answered(server: LiveServer) -> None:
    assert server.get("/v1/models", headers={"Origin": server.url}).status_code == 200


def test_an_allowed_origin_gets_the_headers_of_cors(serve: Callable[..., LiveServer]) -> None:
    origin = "https://page.example"
    live = serve(allow_origins=(origin,), api_key=KEY)
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    preflight = httpx.options(f"{live.url}/v1/chat/completions", headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == origin
    refused = live.get("/v1/models", headers={"Origin": origin})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == origin
    other = httpx.options(
        f"{live.url}/v1/models", headers=asked | {"Origin": "https://evil.example"}
    )
    assert other.status_code == 400
    assert "access-control-allow-origin" not in other.headers


def test_the_docs_page_needs_no_other_site(server: LiveServer) -> None:
    page = server.get("/docs")
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert "<script" not in page.text
    assert not re.findall(r"(?:src|href)=['\"]?(?:https?:)?//", page.text)
    for path in ("/v1/chat/completions", "/v1/see", "/v1/models", "/health", "/metrics"):
        assert path in page.text


def test_the_openapi_document_describes_every_field(server: LiveServer) -> None:
    document: dict[str, Any] = server.get("/openapi.json").json()
    fields = document["components"]["schemas"]["ChatRequest"]["properties"]
    assert {"messages", "temperature", "response_format", "top_k", "image_size"} <= fields.keys()
    text = str(document)
    for name in re.findall(r"#/components/schemas/(\w+)", text):
        assert name in document["components"]["schemas"]


def test_an_unknown_path_and_a_wrong_method_are_errors_of_the_api(server: LiveServer) -> None:
    missing = server.get("/v1/embeddings")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    wrong = server.get("/v1/chat/completions")
    assert wrong.status_code == 405
    assert wrong.headers["Allow"] == "POST"
