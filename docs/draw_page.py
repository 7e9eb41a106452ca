"""Draw docs/page.png, the page of the server in a wide window and on a telephone.

    fastvlm-onnx serve --port 8000
    python docs/draw_page.py http://127.0.0.1:8000

It needs playwright and Debian's chromium. The camera shows a sample picture of the built-in model.
"""

import io
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, expect, sync_playwright

from fastvlm_onnx.samples import SAMPLE_PICTURES

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = "/usr/bin/chromium"
WIDE: dict[str, Any] = {"viewport": {"width": 1180, "height": 820}, "color_scheme": "light"}
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 820}, "color_scheme": "dark"}
GAP = 20


def film(folder: Path) -> Path:
    """A film for Chromium's fake camera: one picture of 640 x 480, as it is held into a camera."""
    frame = Image.new("RGB", (640, 480), "white")
    with Image.open(SAMPLE_PICTURES / "shapes.png") as picture:
        side = round(480 / picture.height * picture.width)
        frame.paste(picture.resize((side, 480)), ((640 - side) // 2, 0))
    path = folder / "film.mjpeg"
    frame.save(path, "JPEG", quality=95)
    path.write_bytes(path.read_bytes() * 30)
    return path


def screenshot(browser: Browser, url: str, questions: list[str], window: Any) -> Image.Image:
    """The page after a press of the shutter and some questions about the frame."""
    context = browser.new_context(**window)
    context.grant_permissions(["camera"])
    context.set_default_timeout(60_000)
    page = context.new_page()
    page.goto(url)
    expect(page.locator("#video")).to_be_visible()
    page.get_by_role("button", name="Ask about this picture").click()
    for number, question in enumerate(questions, start=1):
        expect(page.get_by_role("button", name="Copy the answer")).to_have_count(number)
        page.locator("#question").fill(question)
        page.locator("#question").press("Enter")
    copied = page.get_by_role("button", name="Copy the answer")
    expect(copied).to_have_count(len(questions) + 1)
    page.locator("#question").blur()
    page.evaluate("scrollTo(0, 0)")
    taken = Image.open(io.BytesIO(page.screenshot()))
    context.close()
    return taken.convert("RGB")


def main(url: str) -> None:
    expect.set_options(timeout=60_000)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        camera = f"--use-file-for-fake-video-capture={film(Path(folder))}"
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--use-fake-device-for-media-stream", camera]
        )
        wide = screenshot(browser, url, ["How many stars are there?", "Is there a circle?"], WIDE)
        phone = screenshot(browser, url, [], PHONE)
    both = Image.new("RGB", (wide.width + GAP + phone.width, wide.height), "white")
    both.paste(wide, (0, 0))
    both.paste(phone, (wide.width + GAP, 0))
    colors = both.quantize(256, kmeans=3, dither=Image.Dither.NONE)
    colors.save(ROOT / "docs/page.png", optimize=True)


if __name__ == "__main__":
    main(sys.argv[1])
