"""Steps that tests of the page share: a picture is opened, a drawing is made, requests are read."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, Route, expect

# Makes a File of bytes and hands it to the page as a paste or a drop would.
HAND_OVER = """
async ([name, type, base64, kind]) => {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name, { type }));
  const event = kind === "paste"
    ? new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true })
    : new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true });
  document.querySelector("#view").dispatchEvent(event);
}
"""


def choose(page: Page, group: str, value: str) -> None:
    """Choose a source (camera, file, drawing) or a mode (single, continuous)."""
    page.locator(f"[name={group}][value={value}]").check()


def open_file(page: Page, path: Path) -> None:
    page.locator("#file").set_input_files(path)
    expect(page.locator("#still")).to_be_visible()


def hand_over(page: Page, path: Path, kind: str) -> None:
    """Paste or drop a file; `kind` is the event's name."""
    content = base64.b64encode(path.read_bytes()).decode()
    page.evaluate(HAND_OVER, [path.name, "image/png", content, kind])


def draw_square(page: Page, side: int = 140) -> None:
    """Draw a square in the middle of the pad with the mouse."""
    box = page.locator("#pad").bounding_box()
    assert box is not None
    left, top = box["x"] + (box["width"] - side) / 2, box["y"] + (box["height"] - side) / 2
    page.mouse.move(left, top)
    page.mouse.down()
    for right, down in ((1, 0), (1, 1), (0, 1), (0, 0)):
        page.mouse.move(left + right * side, top + down * side, steps=8)
    page.mouse.up()


def ask(page: Page, question: str) -> None:
    page.locator("#question").fill(question)
    page.locator("#question").press("Enter")


def answers(page: Page, number: int = 1) -> list[str]:
    """The texts of the answers on the page, when `number` of them have ended."""
    ended = page.get_by_role("button", name="Copy the answer")
    expect(ended).to_have_count(number)
    return page.locator(".answer").all_inner_texts()


@contextmanager
def sent_questions(page: Page) -> Iterator[list[dict[str, Any]]]:
    """The bodies of the questions that the page sends during the block."""
    bodies: list[dict[str, Any]] = []

    def note(request: Any) -> None:
        if request.url.endswith("/v1/chat/completions"):
            bodies.append(json.loads(request.post_data))

    page.on("request", note)
    yield bodies
    page.remove_listener("request", note)


@contextmanager
def held_questions(page: Page) -> Iterator[None]:
    """Keep questions from the server during the block, so that an answer does not begin."""

    def hold(_: Route) -> None:
        return

    page.route("**/v1/chat/completions", hold)
    yield
    page.unroute("**/v1/chat/completions", hold)


def first_url(body: dict[str, Any]) -> str:
    """The address of the image that comes first in a question's body."""
    return body["messages"][0]["content"][0]["image_url"]["url"]
