"""The page's files: served with their policy, whole, and without an address of another host."""

import re
import zipfile
from pathlib import Path

import pytest
from live_server import LiveServer

from fastvlm_onnx.server.page_routes import MEDIA_TYPES, PAGE

FILES = sorted(path.name for path in PAGE.iterdir() if path.name != "index.html")
SVG_NAMESPACE = "http://www.w3.org/2000/svg"


@pytest.fixture(scope="module")
def index(server: LiveServer) -> str:
    return server.get("/").text


def test_the_page_may_load_and_call_nothing_but_its_own_server(server: LiveServer) -> None:
    answer = server.get("/")
    assert answer.headers["Content-Type"].startswith("text/html")
    policy = dict(
        part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; ")
    )
    assert policy["default-src"] == "'none'"
    for source in ("script-src", "style-src", "connect-src"):
        assert policy[source] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert "camera=(self)" in answer.headers["Permissions-Policy"]


@pytest.mark.parametrize("name", FILES)
def test_each_file_of_the_page_is_served_as_its_own_type(server: LiveServer, name: str) -> None:
    answer = server.get(f"/page/{name}")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith(MEDIA_TYPES[Path(name).suffix])
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.content == (PAGE / name).read_bytes()


def test_every_file_that_the_page_names_is_there(index: str) -> None:
    named = set(re.findall(r'(?:href|src)="page/([^"#]+)"', index))
    for path in PAGE.glob("*.js"):
        named |= set(re.findall(r'^import .* from "\./([^"]+)";$', path.read_text("utf-8"), re.M))
    assert named == set(FILES)


@pytest.mark.parametrize("path", sorted(PAGE.iterdir()), ids=lambda path: path.name)
def test_no_file_of_the_page_names_another_host(path: Path) -> None:
    text = path.read_text("utf-8").replace(SVG_NAMESPACE, "")
    assert re.findall(r"(?:https?:|wss?:)?//\w+\.\w+", text) == []


def test_every_icon_that_is_shown_is_defined(index: str) -> None:
    defined = set(re.findall(r'<symbol id="icon-([^"]+)"', index))
    assert set(re.findall(r'href="#icon-([^"]+)"', index)) <= defined


def test_a_file_that_did_not_change_is_not_sent_again(server: LiveServer) -> None:
    etag = server.get("/").headers["ETag"]
    assert server.get("/", headers={"If-None-Match": etag}).status_code == 304
    assert server.get("/", headers={"If-None-Match": '"another"'}).status_code == 200


def test_the_wheel_holds_every_file_of_the_page(built_wheel: Path) -> None:
    with zipfile.ZipFile(built_wheel) as archive:
        packaged = {name for name in archive.namelist() if "/server/page/" in name}
    assert packaged == {f"fastvlm_onnx/server/page/{path.name}" for path in PAGE.iterdir()}
