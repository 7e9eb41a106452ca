"""The camera on the page: single pictures, a series, the choice of a camera, the screen's lock."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from page_actions import answers, ask, choose, held_questions, sent_questions
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.slow

# Notes each phase that the capsule says.
NOTE_PHASES = """
() => {
  window.phases = [];
  const phase = document.querySelector("#phase");
  new MutationObserver(() => window.phases.push(phase.textContent))
    .observe(phase, { childList: true });
}
"""


def test_the_shutter_asks_about_the_present_frame_of_the_camera(camera_page: Page) -> None:
    camera_page.get_by_role("button", name="Ask about this picture").click()
    (answer,) = answers(camera_page)
    assert "heart" in answer or "word" in answer.lower()
    expect(camera_page.locator("#still")).to_be_visible()
    camera_page.get_by_role("button", name="Back to the live picture").click()
    expect(camera_page.locator("#video")).to_be_visible()


def test_the_capsule_goes_through_the_phases_of_an_answer(camera_page: Page) -> None:
    camera_page.evaluate(NOTE_PHASES)
    expect(camera_page.locator("#capsule")).to_have_text("Idle")
    camera_page.locator("#shutter").click()
    answers(camera_page)
    expect(camera_page.locator("#capsule")).to_have_text("Idle")
    phases = [phase for phase in camera_page.evaluate("window.phases") if phase != "Idle"]
    assert list(dict.fromkeys(phases)) == ["Processing Prompt", "Generating Response"]
    expect(camera_page.locator("#ttft")).to_have_text(re.compile(r"^TTFT \d+ ms$"))


def test_the_answer_that_begins_on_a_frozen_frame_keeps_it_for_questions(camera_page: Page) -> None:
    camera_page.locator("#shutter").click()
    answers(camera_page)
    with sent_questions(camera_page) as bodies:
        ask(camera_page, "Is there a circle?")
        answers(camera_page, 2)
    assert [message["role"] for message in bodies[0]["messages"]] == ["user", "assistant", "user"]
    expect(camera_page.locator("#still")).to_be_visible()


def test_a_series_follows_what_the_camera_shows(camera_page: Page) -> None:
    choose(camera_page, "mode", "continuous")
    answer = camera_page.locator(".answer")
    expect(answer).to_contain_text("heart")
    expect(answer).to_contain_text("word")
    expect(answer).to_contain_text("heart")


def test_a_series_pauses_and_goes_on(camera_page: Page) -> None:
    choose(camera_page, "mode", "continuous")
    answers(camera_page)
    camera_page.get_by_role("button", name="Pause").click()
    expect(camera_page.locator("#still")).to_be_visible()
    expect(camera_page.locator("#capsule")).to_have_text("Idle")
    with sent_questions(camera_page) as bodies:
        camera_page.wait_for_timeout(1000)
        assert bodies == []
    asked = "**/v1/chat/completions"
    with camera_page.expect_request(asked):
        camera_page.get_by_role("button", name="Go on").click()
    with camera_page.expect_request(asked):
        expect(camera_page.locator("#video")).to_be_visible()


def test_another_mode_ends_the_answer_that_runs(camera_page: Page) -> None:
    with held_questions(camera_page):
        choose(camera_page, "mode", "continuous")
        expect(camera_page.locator("#capsule")).to_have_text("Processing Prompt")
        choose(camera_page, "mode", "single")
        expect(camera_page.locator("#capsule")).to_have_text("Idle")
    expect(camera_page.get_by_role("alert")).to_have_count(0)


def test_the_camera_can_be_chosen(
    chromium: Callable[..., Any], open_page: Callable[..., Any]
) -> None:
    two_cameras = chromium("--use-fake-device-for-media-stream=device-count=2")
    page = open_page(started=two_cameras, camera=True)
    cameras = page.get_by_role("combobox", name="Camera")
    expect(cameras.locator("option")).to_have_count(2)
    ids = cameras.evaluate("(select) => [...select.options].map((option) => option.value)")
    first = cameras.input_value()
    second = next(one for one in ids if one != first)
    cameras.select_option(second)
    expect(cameras).to_have_value(second)
    page.get_by_role("button", name="Other camera").click()
    expect(cameras).to_have_value(first)
    used = "document.querySelector('video').srcObject.getVideoTracks()[0].getSettings().deviceId"
    assert page.evaluate(used) == first
    two_cameras.close()


def test_a_camera_that_is_not_allowed_is_said_in_words(page: Page) -> None:
    page.get_by_role("button", name="Start the camera").click()
    expect(page.get_by_role("alert").filter(visible=True)).to_contain_text(
        "The browser does not let this page use a camera."
    )


def test_the_camera_is_off_while_another_source_is_chosen(camera_page: Page) -> None:
    choose(camera_page, "source", "drawing")
    assert camera_page.evaluate("document.querySelector('video').srcObject") is None
    choose(camera_page, "source", "camera")
    expect(camera_page.locator("#video")).to_be_visible()


def test_the_screen_stays_on_while_the_camera_is_live(
    open_page: Callable[..., Any], browser: Any
) -> None:
    """The lock itself is a fake: a browser without a screen refuses it."""

    def fake_lock(page: Page) -> None:
        page.add_init_script("""
          window.locks = [];
          navigator.wakeLock.request = async (kind) => {
            window.locks.push(kind);
            const lock = new EventTarget();
            lock.release = async () => {
              window.locks.pop();
              lock.dispatchEvent(new Event("release"));
            };
            return lock;
          };
        """)

    page = open_page(camera=True, before=fake_lock)
    expect(page.locator("#video")).to_be_visible()
    assert page.evaluate("window.locks") == ["screen"]
    choose(page, "source", "file")
    assert page.evaluate("window.locks") == []
