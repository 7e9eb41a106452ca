"""Images by URL: which hosts and addresses are connected to, and how much is read."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

import pytest
from live_server import LiveServer, image_part

from fastvlm_onnx.server.addresses import is_private_host, is_public, parse_address
from fastvlm_onnx.server.errors import ApiError
from fastvlm_onnx.server.fetching import Fetcher
from fastvlm_onnx.server.settings import Settings

# One address of each range that a name could point at. The last ones carry 127.0.0.1.
REFUSED = {
    "private 10/8": "10.1.2.3",
    "private 172.16/12": "172.16.0.1",
    "private 192.168/16": "192.168.1.1",
    "loopback": "127.0.0.1",
    "this network": "0.0.0.0",
    "link-local": "169.254.169.254",
    "shared 100.64/10": "100.64.0.1",
    "protocol assignments": "192.0.0.1",
    "documentation": "192.0.2.1",
    "benchmarks": "198.18.0.1",
    "multicast": "224.0.0.1",
    "reserved": "240.0.0.1",
    "broadcast": "255.255.255.255",
    "IPv6 loopback": "::1",
    "IPv6 unspecified": "::",
    "IPv6 link-local": "fe80::1%eth0",
    "IPv6 unique local": "fd00:ec2::254",
    "IPv6 site-local": "fec0::1",
    "IPv6 multicast": "ff02::1",
    "IPv6 documentation": "2001:db8::1",
    "IPv4-mapped": "::ffff:127.0.0.1",
    "IPv4-compatible": "::127.0.0.1",
    "IPv4-translated": "::ffff:0:127.0.0.1",
    "6to4": "2002:7f00:1::",
    "NAT64": "64:ff9b::7f00:1",
    "local NAT64": "64:ff9b:1::7f00:1",
    "Teredo": "2001:0:7f00:1::1",
}
PUBLIC = ("8.8.8.8", "93.184.216.34", "2606:4700:4700::1111")


@pytest.mark.parametrize("address", REFUSED.values(), ids=REFUSED.keys())
def test_an_address_of_a_special_range_is_not_public(address: str) -> None:
    assert not is_public(parse_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(ip_address(address))
    assert not is_private_host(ip_address(address))


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "fe80::1", "::ffff:127.0.0.1", "224.0.0.1", "0.0.0.0"]
)
def test_an_address_of_metadata_services_is_not_a_private_host(address: str) -> None:
    assert not is_private_host(ip_address(address))


# --- a server of pictures, and a resolver that says where names lead -----------------------------


class PictureServer(BaseHTTPRequestHandler):
    """Answers by path; `picture` is set by the fixture."""

    picture = b""
    hosts: list[str | None]

    def do_GET(self) -> None:
        self.hosts.append(self.headers["Host"])
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
        elif self.path == "/missing":
            self.send_error(404)
        elif self.path == "/compressed":
            self.answer({"Content-Encoding": "gzip"}, b"bomb")
        elif self.path == "/slow":
            self.answer({}, b"")
            time.sleep(1)
        elif self.path == "/endless":
            self.answer({}, self.picture * 1000)
        else:
            self.answer({}, self.picture)

    def answer(self, headers: dict[str, str], body: bytes) -> None:
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:
            return  # the client has read enough

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def port(picture: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(PictureServer, "picture", picture.read_bytes())
    monkeypatch.setattr(PictureServer, "hosts", [], raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), PictureServer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


class LocalResolver:
    """A resolver that knows some names, and counts its questions."""

    def __init__(self, **addresses: Sequence[str]) -> None:
        self._addresses = addresses
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        if host not in self._addresses:
            raise OSError("no such name")
        return self._addresses[host]


def fetch(resolver: LocalResolver, url: str, **settings: object) -> bytes:
    return asyncio.run(Fetcher(Settings(**settings), resolver).fetch(url, lambda _: None))


def refusal(resolver: LocalResolver, url: str, **settings: object) -> ApiError:
    with pytest.raises(ApiError) as caught:
        fetch(resolver, url, **settings)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize("address", REFUSED.values(), ids=REFUSED.keys())
def test_a_name_that_leads_to_a_special_range_is_not_connected_to(address: str) -> None:
    resolver = LocalResolver(pictures=[address])
    error = refusal(resolver, "http://pictures/a.png", allow_url_hosts=("pictures",))
    assert error.code == "image_url_address_refused"
    assert address not in error.message  # a client learns nothing about the network


def test_a_name_with_one_refused_address_among_others_is_not_connected_to() -> None:
    resolver = LocalResolver(pictures=["8.8.8.8", "10.0.0.1"])
    error = refusal(resolver, "http://pictures/a.png", allow_url_hosts=("pictures",))
    assert error.code == "image_url_address_refused"


@pytest.mark.parametrize("address", ["169.254.169.254", "::ffff:127.0.0.1", "fe80::1"])
def test_a_private_host_may_not_lead_to_a_metadata_service(address: str) -> None:
    resolver = LocalResolver(camera=[address])
    error = refusal(resolver, "http://camera/a.png", allow_private_url_hosts=("camera",))
    assert error.code == "image_url_address_refused"


def test_an_address_as_host_is_refused_like_a_name() -> None:
    resolver = LocalResolver(**{"127.0.0.1": ["127.0.0.1"]})
    error = refusal(resolver, "http://127.0.0.1/a.png", allow_url_hosts=("127.0.0.1",))
    assert error.code == "image_url_address_refused"


@pytest.mark.parametrize(
    "url",
    [
        "http://other/a.png",
        "http://sub.pictures/a.png",
        "http://pictures.evil/a.png",
        "http://pictures:8080/a.png",
        "https://pictures:80/a.png",
    ],
)
def test_a_host_or_port_that_is_not_listed_is_not_resolved(url: str) -> None:
    resolver = LocalResolver()
    assert refusal(resolver, url, allow_url_hosts=("pictures",)).code == (
        "image_url_host_not_allowed"
    )
    assert resolver.asked == []


@pytest.mark.parametrize(
    "url", ["http://pictures@evil/a.png", "http://user:key@pictures/", "http:///a.png", "http://["]
)
def test_a_url_with_a_user_or_without_a_host_is_refused(url: str) -> None:
    resolver = LocalResolver()
    refusal(resolver, url, allow_url_hosts=("pictures",))
    assert resolver.asked == []


def test_a_listed_host_is_resolved_once_and_that_address_connected_to(
    port: int, picture: Path
) -> None:
    resolver = LocalResolver(camera=["127.0.0.1"])
    host = f"camera:{port}"
    fetched = fetch(resolver, f"http://{host}/a.png", allow_private_url_hosts=(host,))
    assert fetched == picture.read_bytes()
    assert resolver.asked == ["camera"]
    assert PictureServer.hosts == [host]


def test_a_redirect_is_not_followed_unless_asked_for(port: int, picture: Path) -> None:
    host = f"camera:{port}"
    url = f"http://{host}/to//a.png"
    resolver = LocalResolver(camera=["127.0.0.1"])
    assert "redirects" in refusal(resolver, url, allow_private_url_hosts=(host,)).message
    fetched = fetch(resolver, url, allow_private_url_hosts=(host,), allow_redirects=True)
    assert fetched == picture.read_bytes()


def test_a_redirect_is_checked_on_every_hop(port: int) -> None:
    host = f"camera:{port}"
    resolver = LocalResolver(camera=["127.0.0.1"], pictures=["169.254.169.254"])
    lists = {"allow_private_url_hosts": (host,), "allow_url_hosts": ("pictures",)}
    for target, code in (
        ("http://other/", "image_url_host_not_allowed"),
        ("http://pictures/latest/meta-data", "image_url_address_refused"),
        ("http://pictures:x/", "image_url_unreachable"),
    ):
        url = f"http://{host}/to/{target}"
        assert refusal(resolver, url, allow_redirects=True, **lists).code == code
    again = f"http://{host}/to//to//to//to//to/a.png"
    assert "more than 3" in refusal(resolver, again, allow_redirects=True, **lists).message


@pytest.mark.parametrize(
    ("path", "settings", "code"),
    [
        ("/missing", {}, "image_url_unreachable"),
        ("/compressed", {}, "image_url_unreachable"),
        ("/slow", {"fetch_seconds": 0.2}, "image_url_timeout"),
        ("/endless", {"fetch_mb": 0.1}, "image_too_large"),
    ],
)
def test_a_server_that_gives_no_usable_picture_is_an_error(
    port: int, path: str, settings: dict[str, float], code: str
) -> None:
    host = f"camera:{port}"
    resolver = LocalResolver(camera=["127.0.0.1"])
    url = f"http://{host}{path}"
    assert refusal(resolver, url, allow_private_url_hosts=(host,), **settings).code == code


def test_a_host_that_refuses_connections_or_has_no_address_is_an_error() -> None:
    resolver = LocalResolver(camera=["127.0.0.1"], empty=[])
    for url in ("http://camera:1/a.png", "http://empty:1/", "http://unknown:1/"):
        hosts = (url.split("/")[2],)
        assert refusal(resolver, url, allow_private_url_hosts=hosts).code == "image_url_unreachable"


def test_no_proxy_of_the_environment_is_used(
    port: int, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    host = f"camera:{port}"
    resolver = LocalResolver(camera=["127.0.0.1"])
    assert fetch(resolver, f"http://{host}/", allow_private_url_hosts=(host,))


# --- through the server --------------------------------------------------------------------------


def test_a_listed_url_is_answered_like_the_picture(
    serve: Callable[..., LiveServer], port: int, picture: Path, questions: dict[str, dict[str, str]]
) -> None:
    prompt, expected = next(iter(questions[picture.name].items()))
    live = serve(allow_private_url_hosts=(f"localhost:{port}",))
    url = f"http://localhost:{port}/a.png"
    answer = live.ask([image_part(url), {"type": "text", "text": prompt}])
    assert answer.json()["choices"][0]["message"]["content"] == expected


def test_fetched_bytes_count_among_those_that_the_server_holds(
    serve: Callable[..., LiveServer], port: int, picture: Path
) -> None:
    megabytes = len(picture.read_bytes()) * 1.5 / 1e6
    live = serve(allow_private_url_hosts=(f"localhost:{port}",), max_buffered_mb=megabytes)
    part = image_part(f"http://localhost:{port}/a.png")
    assert live.ask([part, {"type": "text", "text": "What?"}], max_tokens=1).status_code == 200
    refused = live.ask([part, part])
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "out_of_buffers")


def test_no_url_is_fetched_by_default(server: LiveServer, port: int) -> None:
    answer = server.ask([image_part(f"http://localhost:{port}/a.png")])
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "image_url_host_not_allowed"
    assert PictureServer.hosts == []
