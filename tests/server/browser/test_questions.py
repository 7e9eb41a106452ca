"""Prompts, questions, conversations, structured answers and the history on the page."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from page_actions import (
    answers,
    ask,
    first_url,
    held_questions,
    open_file,
    sent_questions,
)
from playwright.sync_api import Page, Route, expect

pytestmark = pytest.mark.slow

# Source: apple/ml-fastvlm, app/ at commit 592b4ad.
APPLES_PROMPTS = {
    "Describe the picture": "Describe the image in English. "
    "Output should be brief, about 15 words or less.",
    "Facial expression": "What is this person's facial expression? Output only one or two words.",
    "Read text": "What is written in this image? Output only the text in the image.",
}


@pytest.fixture
def page(page: Page, pictures: Path) -> Page:
    """The page with a picture of a file."""
    open_file(page, pictures / "shapes.png")
    return page


def text_of(body: dict) -> str:
    """The last question of a body."""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


@pytest.mark.parametrize("name", APPLES_PROMPTS)
def test_the_menu_has_each_prompt_of_apples_app(page: Page, name: str) -> None:
    with sent_questions(page) as bodies:
        page.get_by_role("combobox", name="Prompt").select_option(name)
        page.get_by_role("button", name="Ask", exact=True).click()
        answers(page)
    assert text_of(bodies[0]) == APPLES_PROMPTS[name]
    assert (bodies[0]["max_tokens"], bodies[0]["temperature"]) == (240, 0)


def test_a_prompt_and_its_suffix_can_be_customized_and_are_kept(page: Page, pictures: Path) -> None:
    page.get_by_role("combobox", name="Prompt").select_option("Customize…")
    page.get_by_label("Your prompt").fill("How many hearts are there?")
    page.get_by_label("Added to it").fill("Be brief.")
    with sent_questions(page) as bodies:
        page.get_by_role("button", name="Ask", exact=True).click()
        answers(page)
    assert text_of(bodies[0]) == "How many hearts are there? Be brief."
    page.reload()
    expect(page.get_by_label("Your prompt")).to_have_value("How many hearts are there?")


def test_a_picture_is_prepared_while_the_user_writes_and_then_named(page: Page) -> None:
    expect(page.get_by_text("Picture prepared")).to_be_visible()
    with sent_questions(page) as bodies:
        ask(page, "How many stars are there?")
        assert answers(page) == ["There is one star."]
    assert first_url(bodies[0]).startswith("see:")


def test_a_frame_of_the_camera_is_prepared_at_the_first_letter(camera_page: Page) -> None:
    camera_page.locator("#shutter").click()
    answers(camera_page)
    with camera_page.expect_response("**/v1/see") as seen:
        camera_page.locator("#question").press_sequentially("Is")
    assert seen.value.status == 200
    expect(camera_page.get_by_text("Picture prepared")).to_be_visible()


def test_a_picture_that_the_server_forgot_is_sent_again(
    open_page: Callable[..., Any], pictures: Path
) -> None:
    """The route stands in for the time that passes until an id expires."""
    page = open_page(expects="404 (Not Found)")
    open_file(page, pictures / "shapes.png")
    expect(page.get_by_text("Picture prepared")).to_be_visible()

    def forget(route: Route) -> None:
        assert route.request.post_data is not None
        body = json.loads(route.request.post_data)
        body["messages"][0]["content"][0]["image_url"]["url"] = "see:forgotten"
        route.continue_(post_data=json.dumps(body))

    page.route("**/v1/chat/completions", forget, times=1)
    with sent_questions(page) as bodies:
        ask(page, "How many stars are there?")
        assert answers(page) == ["There is one star."]
    assert [first_url(body)[:4] for body in bodies] == ["see:", "data"]


def test_a_conversation_sends_earlier_turns_and_can_be_switched_off(page: Page) -> None:
    with sent_questions(page) as bodies:
        ask(page, "How many stars are there?")
        answers(page, 1)
        ask(page, "How many hearts are there?")
        answers(page, 2)
        page.get_by_role("switch", name="Conversation").uncheck()
        ask(page, "Is there a circle?")
        answers(page, 3)
    assert [len(body["messages"]) for body in bodies] == [1, 3, 1]
    assert bodies[1]["messages"][1] == {"role": "assistant", "content": "There is one star."}


def test_an_answer_that_runs_can_be_stopped(page: Page) -> None:
    for stop in (
        lambda: page.get_by_role("button", name="Stop the answer").click(),
        lambda: page.keyboard.press("Escape"),
    ):
        with held_questions(page):
            with page.expect_request("**/v1/chat/completions") as question:
                page.locator("#shutter").click()
            expect(page.locator("#capsule")).to_have_text("Processing Prompt")
            with page.expect_event("requestfailed", lambda failed: failed == question.value):
                stop()
            expect(page.locator("#capsule")).to_have_text("Idle")
    expect(page.locator(".turn")).to_have_count(0)


def test_an_answer_can_be_selected_and_is_cut_at_its_longest_length(page: Page) -> None:
    page.get_by_text("Answer options").click()
    page.get_by_label("Longest answer, tokens").fill("3")
    page.locator("#shutter").click()
    answers(page)
    expect(page.locator(".foot")).to_contain_text("cut at the longest answer")
    page.locator(".answer").select_text()
    assert page.evaluate("getSelection().toString()") == page.locator(".answer").inner_text()


def test_a_structured_answer_has_the_form_of_the_schema(page: Page) -> None:
    pytest.importorskip("llguidance", reason="the extra `structured` is not installed")
    page.get_by_text("Answer options").click()
    page.get_by_role("combobox", name="Form of the answer").select_option("JSON of a schema")
    page.get_by_role("button", name="yes or no").click()
    page.locator("#shutter").click()
    (answer,) = answers(page)
    assert json.loads(answer) in ("yes", "no", "not sure")


def test_the_schema_box_says_where_a_schema_is_wrong(page: Page) -> None:
    page.get_by_text("Answer options").click()
    page.get_by_role("combobox", name="Form of the answer").select_option("JSON of a schema")
    schema = page.get_by_label("JSON Schema")
    schema.fill('{"type": ')
    expect(page.locator("#schema-error")).to_contain_text("This is not a schema")
    expect(schema).to_have_attribute("aria-invalid", "true")
    with sent_questions(page) as bodies:
        page.get_by_role("button", name="text in the picture").click()
        expect(page.locator("#schema-error")).to_be_empty()
        with held_questions(page):
            with page.expect_request("**/v1/chat/completions"):
                page.locator("#shutter").click()
            page.keyboard.press("Escape")
            expect(page.locator("#capsule")).to_have_text("Idle")
    assert bodies[0]["response_format"]["type"] == "json_schema"
    assert bodies[0]["response_format"]["json_schema"]["schema"]["required"] == ["has_text", "text"]


def test_the_history_lists_answers_opens_them_again_and_is_saved(
    page: Page, pictures: Path, tmp_path: Path
) -> None:
    ask(page, "How many stars are there?")
    answers(page)
    open_file(page, pictures / "word.png")
    ask(page, "What's the word?")
    expect(page.locator(".answer")).to_have_text("History")
    answers(page)

    page.get_by_role("button", name="History").click()
    entries = page.get_by_role("dialog", name="History").get_by_role("listitem")
    expect(entries).to_have_count(2)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as JSON").click()
    download.value.save_as(tmp_path / "history.json")
    saved = json.loads((tmp_path / "history.json").read_text("utf-8"))
    assert [entry["answer"] for entry in saved] == ["History", "There is one star."]
    assert saved[0]["image"].startswith("data:image/png;base64,")

    entries.nth(1).get_by_role("button").click()
    assert answers(page) == ["There is one star."]
    page.get_by_role("button", name="History").click()
    page.get_by_role("button", name="Clear").click()
    expect(entries).to_have_count(0)
