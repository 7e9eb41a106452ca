"""`--layout web-page` in Chromium: a plain file server sends it, and the browser answers."""

import re
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from page_actions import answers, ask, choose, draw_square, open_file
from playwright.sync_api import Page, expect

from fastvlm_onnx import load
from fastvlm_onnx.export import export_package

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def web_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of the built-in model that is also a web page; npm installs what the page needs."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("web") / "page"
    export_package("demo", folder, precisions=("int8",), layout="web-page")
    return folder


@pytest.fixture(scope="module")
def address(web_page: Path) -> Iterator[str]:
    """The address of the page on Python's file server, which sends no header of isolation."""

    class Handler(SimpleHTTPRequestHandler):
        extensions_map = {  # noqa: RUF012
            **SimpleHTTPRequestHandler.extensions_map,
            ".mjs": "text/javascript",
            ".wasm": "application/wasm",
        }

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(web_page)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_page_answers_follow_up_questions_about_a_picture(
    open_page: Callable[..., Page], address: str, picture: Path, questions: Any
) -> None:
    page = open_page(address)
    asked = questions[picture.name]
    choose(page, "source", "file")
    open_file(page, picture)
    for number, (prompt, answer) in enumerate(list(asked.items())[:2], 1):
        ask(page, prompt)
        assert answers(page, number)[-1] == answer
    expect(page.locator("#ttft")).to_have_text(re.compile(r"^TTFT \d+ ms$"))


def test_the_page_is_isolated_on_a_server_that_sends_no_headers(
    open_page: Callable[..., Page], address: str
) -> None:
    page = open_page(address)
    assert page.evaluate("crossOriginIsolated")
    page.get_by_role("button", name="About this page").click()
    expect(page.locator("#facts")).to_contain_text("WebAssembly, threads")
    expect(page.locator("#privacy")).to_contain_text("stay in this browser")
    expect(page.locator("#change-key")).to_be_hidden()


def test_the_page_takes_single_pictures_and_a_series_of_the_camera(
    open_page: Callable[..., Page], address: str
) -> None:
    page = open_page(address, camera=True)
    expect(page.locator("#video")).to_be_visible()
    page.get_by_role("button", name="Ask about this picture").click()
    (answer,) = answers(page)
    assert "heart" in answer or "word" in answer.lower()
    choose(page, "mode", "continuous")
    expect(page.locator(".answer")).to_contain_text("heart")
    expect(page.locator(".answer")).to_contain_text("word")


def test_an_answer_that_is_reopened_takes_further_questions(
    open_page: Callable[..., Page], address: str
) -> None:
    page = open_page(address)
    choose(page, "source", "drawing")
    draw_square(page)
    ask(page, "Describe the image.")
    (first,) = answers(page)
    page.reload()
    expect(page.locator("#load-status")).to_have_attribute("data-state", "ready")
    choose(page, "source", "drawing")
    draw_square(page)
    ask(page, "Describe the image.")
    assert answers(page) == [first]
    page.get_by_role("button", name="History").click()
    page.locator("#entries button").first.click()
    ask(page, "How many circles are there?")
    assert len(answers(page, 2)) == 2


def test_a_damaged_file_is_named_and_no_question_is_taken(
    open_page: Callable[..., Page], address: str, web_page: Path
) -> None:
    weights = web_page / "decoder.int8.onnx.data"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        page = open_page(address, is_ready=False)
        expect(page.locator("#notice")).to_contain_text(f"{weights.name} is not the file that was")
        expect(page.locator("#send")).to_be_disabled()
    finally:
        weights.write_bytes(content)


def test_the_page_is_still_a_package_that_is_added_to(web_page: Path, picture: Path) -> None:
    folder = web_page.with_name("added")
    shutil.copytree(web_page, folder)
    export_package("demo", folder, precisions=("fp32",), add=True)
    assert (folder / "index.html").is_file()
    with load(folder, precision="fp32") as model:
        assert model.generate(picture, "Describe the image.").text
    shutil.rmtree(folder)
