"""States of the page: loading, errors, key, colors, widths, keyboard, screen readers."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from live_server import LiveServer, live_server, service_of, wait_until
from page_actions import answers, ask, choose, open_file
from playwright.sync_api import Page, expect

import fastvlm_onnx
from fastvlm_onnx import FastVLM

pytestmark = pytest.mark.slow

# The browser's own message for a response with an error status.
REFUSED = "Failed to load resource"
KEY = "a key of the tests"
WIDTHS = (320, 390, 768, 1280)


def notice(page: Page) -> Any:
    return page.locator("#notice-text")


# --- the server ----------------------------------------------------------------------------------


def test_the_page_shows_that_the_model_loads_and_that_it_is_ready(
    open_page: Callable[..., Any], served_model: FastVLM
) -> None:
    may_load: list[bool] = []

    def open_service() -> Any:
        wait_until(lambda: bool(may_load))
        return service_of(served_model)

    with live_server(open_service) as live:
        page = open_page(live.url, is_ready=False, expects=REFUSED)
        status = page.locator("#load-status")
        expect(status).to_have_text("Loading the model…")
        expect(page.locator("#shutter")).to_be_disabled()
        may_load.append(True)
        expect(status).to_have_text("demo")
        page.close()


def test_a_server_that_went_away_is_said_and_found_again(
    open_page: Callable[..., Any], served_model: FastVLM, pictures: Path
) -> None:
    with live_server(lambda: service_of(served_model)) as live:
        page = open_page(live.url, expects=REFUSED)
        open_file(page, pictures / "shapes.png")
        page.context.set_offline(True)
        ask(page, "How many stars are there?")
        expect(notice(page)).to_contain_text("The server does not answer.")
        expect(page.locator("#load-status")).to_have_text("No server")
        page.context.set_offline(False)
        expect(page.locator("#load-status")).to_have_text("demo")
        page.get_by_role("button", name="Try again").click()
        assert answers(page) == ["There is one star."]
        page.close()


def test_the_page_asks_for_the_key_and_keeps_it_in_the_tab(
    open_page: Callable[..., Any], serve: Callable[..., LiveServer]
) -> None:
    live = serve(api_key=KEY)
    page = open_page(live.url, is_ready=False, expects=REFUSED)
    dialog = page.get_by_role("dialog", name="API key")
    expect(dialog).to_contain_text("The server asks for a key.")
    page.get_by_label("Key", exact=True).fill("another key")
    page.get_by_label("Key", exact=True).press("Enter")
    expect(dialog).to_contain_text("The server does not know this key.")
    page.get_by_label("Key", exact=True).fill(KEY)
    page.get_by_role("button", name="Use this key").click()
    expect(page.locator("#load-status")).to_have_text("demo")
    assert page.evaluate("Object.values(sessionStorage)") == [KEY]
    assert KEY not in page.evaluate("Object.values(localStorage)")
    page.reload()
    expect(page.locator("#load-status")).to_have_text("demo")
    page.close()


def test_a_busy_server_is_said_with_the_time_to_wait(
    open_page: Callable[..., Any], pictures: Path
) -> None:
    """The route stands in for a full queue."""
    page = open_page(expects=REFUSED)
    open_file(page, pictures / "shapes.png")
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(
            status=429,
            headers={"Retry-After": "7"},
            json={"error": {"message": "the queue is full", "code": "queue_full"}},
        ),
        times=1,
    )
    ask(page, "How many stars are there?")
    expect(notice(page)).to_have_text("The server is busy. Try again in 7 s.")
    page.get_by_role("button", name="Try again").click()
    assert answers(page) == ["There is one star."]
    expect(notice(page)).to_be_hidden()


def test_a_picture_that_the_server_refuses_is_said_in_its_words(
    open_page: Callable[..., Any], serve: Callable[..., LiveServer], pictures: Path
) -> None:
    page = open_page(serve(max_pixels=100).url, expects=REFUSED)
    open_file(page, pictures / "shapes.png")
    ask(page, "How many stars are there?")
    expect(notice(page)).to_contain_text("100")
    page.get_by_role("button", name="Close the message").click()
    expect(notice(page)).to_be_hidden()
    page.close()


def test_the_info_sheet_tells_the_facts_of_the_model(page: Page) -> None:
    page.get_by_role("button", name="About this page").click()
    sheet = page.get_by_role("dialog", name="About this page")
    for fact in ("demo", "fp32", "256 × 256 pixels", fastvlm_onnx.__version__):
        expect(sheet).to_contain_text(fact)
    page.keyboard.press("Escape")
    expect(sheet).to_be_hidden()


# --- looks ---------------------------------------------------------------------------------------


def test_colors_follow_the_system_until_the_user_chooses(open_page: Callable[..., Any]) -> None:
    page = open_page(color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.emulate_media(color_scheme="light")
    light = page.evaluate(ground)
    assert dark != light
    page.get_by_role("button", name="Colors: as the system").click()
    page.get_by_role("button", name="Colors: light").click()
    expect(page.get_by_role("button", name="Colors: dark")).to_be_visible()
    assert page.evaluate(ground) == dark
    page.reload()
    assert page.evaluate(ground) == dark


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_screen(
    open_page: Callable[..., Any], pictures: Path, width: int
) -> None:
    page = open_page(viewport={"width": width, "height": 800}, camera=True)
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    open_file(page, pictures / "word.png")
    page.locator("#shutter").click()
    answers(page)
    assert page.evaluate(overflow) == 0
    page.get_by_text("Answer options").click()
    for source in ("camera", "file", "drawing"):
        choose(page, "source", source)
        assert page.evaluate(overflow) == 0


def test_nothing_moves_where_the_user_wants_less_motion(open_page: Callable[..., Any]) -> None:
    page = open_page(reduced_motion="reduce")
    page.locator("#capsule").evaluate("(capsule) => (capsule.dataset.phase = 'prompt')")
    dot = page.locator("#capsule .dot")
    assert dot.evaluate("(dot) => getComputedStyle(dot).animationName") == "none"


# --- keyboard and screen reader ------------------------------------------------------------------


def test_the_page_can_be_used_with_the_keyboard_alone(page: Page, pictures: Path) -> None:
    open_file(page, pictures / "shapes.png")
    page.locator("body").press("Space")
    answers(page, 1)
    page.locator("body").press("/")
    expect(page.locator("#question")).to_be_focused()
    page.keyboard.type("How many stars are there?")
    page.keyboard.press("Enter")
    answers(page, 2)
    page.keyboard.press("Escape")

    page.reload()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the question")).to_be_focused()
    seen = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id || document.activeElement.name"))
    assert seen >= {"open-history", "theme", "open-info", "source", "mode", "start-camera"}


def test_every_control_has_a_name_for_screen_readers(page: Page) -> None:
    choose(page, "source", "drawing")
    page.get_by_text("Answer options").click()
    tree = page.locator("body").aria_snapshot()
    controls = re.findall(
        r"^\s*- (button|textbox|combobox|radio|switch|spinbutton|application)(.*)$", tree, re.M
    )
    assert len(controls) > 20
    assert [control for control in controls if '"' not in control[1]] == []


def test_a_whole_answer_is_read_aloud_when_it_has_ended(page: Page, pictures: Path) -> None:
    open_file(page, pictures / "shapes.png")
    ask(page, "How many stars are there?")
    announcer = page.locator("[aria-live=polite]", has_text="There is one star.")
    expect(announcer).to_have_count(1)
    expect(page.locator("#turns [aria-live]")).to_have_count(0)
