"""Pictures of files and of the drawing pad on the page."""

from pathlib import Path

import pytest
from page_actions import (
    answers,
    ask,
    choose,
    draw_square,
    first_url,
    hand_over,
    open_file,
    sent_questions,
)
from PIL import Image
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.slow

DARK_PIXELS = """
() => {
  const pad = document.querySelector("#pad");
  const copy = new OffscreenCanvas(pad.width, pad.height).getContext("2d");
  copy.drawImage(pad, 0, 0);
  const { data } = copy.getImageData(0, 0, pad.width, pad.height);
  return data.filter((value, i) => i % 4 === 0 && value < 128).length;
}
"""


def test_a_chosen_file_is_asked_about_as_it_is(
    page: Page, pictures: Path, questions: dict[str, dict[str, str]]
) -> None:
    choose(page, "source", "file")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a picture").click()
    chooser.value.set_files(pictures / "shapes.png")
    page.get_by_role("button", name="Ask about this picture").click()
    assert answers(page) == [questions["shapes.png"]["Describe the image."]]


@pytest.mark.parametrize("kind", ["paste", "drop"])
def test_a_picture_can_be_pasted_and_dropped(
    page: Page, pictures: Path, questions: dict[str, dict[str, str]], kind: str
) -> None:
    if kind == "drop":
        hand_over(page, pictures / "hand.png", "dragover")
        expect(page.locator("#view")).to_have_class("view dropping")
    hand_over(page, pictures / "hand.png", kind)
    expect(page.locator("#still")).to_be_visible()
    page.locator("#shutter").click()
    assert answers(page) == [questions["hand.png"]["Describe the image."]]


def test_a_file_that_is_no_picture_is_said_in_words(page: Page, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    page.locator("#file").set_input_files(text)
    expect(page.get_by_role("alert").filter(visible=True)).to_contain_text(
        "notes.txt is not an image that this browser can read."
    )


def test_a_large_picture_is_reduced_and_a_rotated_photo_is_sent_upright(
    page: Page, tmp_path: Path
) -> None:
    photo = Image.new("RGB", (3000, 2000), "white")
    orientation = photo.getexif()
    orientation[0x0112] = 6  # rotated by a quarter
    path = tmp_path / "photo.jpg"
    photo.save(path, exif=orientation)
    open_file(page, path)
    size = "(image) => [image.naturalWidth, image.naturalHeight]"
    assert page.locator("#still").evaluate(size) == [683, 1024]


def test_the_built_in_model_knows_a_shape_that_the_mouse_draws(page: Page) -> None:
    choose(page, "source", "drawing")
    expect(page.locator("#shutter")).to_be_disabled()
    page.get_by_role("radio", name="red").check()
    draw_square(page)
    page.locator("#shutter").click()
    (answer,) = answers(page)
    assert "red" in answer


def test_strokes_can_be_erased_undone_and_cleared(page: Page) -> None:
    choose(page, "source", "drawing")
    page.get_by_role("radio", name="black").check()
    draw_square(page)
    drawn = page.evaluate(DARK_PIXELS)
    assert drawn > 0
    page.get_by_role("button", name="Eraser").click()
    draw_square(page)
    assert page.evaluate(DARK_PIXELS) == 0
    page.get_by_role("button", name="Undo the last stroke").click()
    assert page.evaluate(DARK_PIXELS) == drawn
    page.get_by_role("button", name="Clear the drawing").click()
    assert page.evaluate(DARK_PIXELS) == 0
    expect(page.locator("#shutter")).to_be_disabled()


def test_the_pad_can_be_used_with_the_keyboard(page: Page) -> None:
    choose(page, "source", "drawing")
    page.get_by_role("radio", name="black").check()
    pad = page.get_by_role("application", name="Drawing pad")
    pad.focus()
    pad.press("Enter")
    for key in ("ArrowRight", "ArrowDown"):
        for _ in range(8):
            pad.press(key)
    pad.press("Enter")
    page.locator("#question").focus()
    assert page.evaluate(DARK_PIXELS) > 100
    expect(page.locator("#shutter")).to_be_enabled()


def test_a_series_asks_again_when_the_drawing_changes(page: Page) -> None:
    choose(page, "source", "drawing")
    choose(page, "mode", "continuous")
    draw_square(page)
    answers(page)
    with sent_questions(page) as bodies:
        page.wait_for_timeout(1000)
        assert bodies == []
        with page.expect_request("**/v1/chat/completions"):
            page.get_by_role("radio", name="red").check()
            draw_square(page, side=60)
        page.wait_for_timeout(1000)
        assert len(bodies) == 1


def test_another_picture_begins_another_conversation(page: Page, pictures: Path) -> None:
    open_file(page, pictures / "shapes.png")
    ask(page, "How many stars are there?")
    answers(page)
    with sent_questions(page) as bodies:
        open_file(page, pictures / "word.png")
        ask(page, "What's the word?")
        expect(page.locator(".answer")).to_have_text("History")
    assert len(bodies[0]["messages"]) == 1
    assert first_url(bodies[0]).startswith(("see:", "data:image/png"))
