"""The page in a real Chromium, with Chromium's fake camera and a real server."""

import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from live_server import LiveServer
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
# The camera shows each of these pictures for two seconds, 30 frames a second.
CAMERA_PICTURES = ("shapes.png", "word.png")
CAMERA_FRAMES = 60
CAMERA_SIZE = (640, 480)
SECONDS = 60


@pytest.fixture(scope="session")
def chromium() -> Iterator[Callable[..., Any]]:
    """Start Chromium with arguments of its command line."""
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        pytest.skip(f"none of {', '.join(CHROMIUM)} is installed")
    playwright.expect.set_options(timeout=SECONDS * 1000)
    with playwright.sync_playwright() as driver:

        def start(*arguments: str) -> Any:
            return driver.chromium.launch(executable_path=found, args=arguments)

        yield start


@pytest.fixture(scope="session")
def pictures(picture: Path) -> Path:
    """The folder of the sample pictures."""
    return picture.parent


@pytest.fixture(scope="session")
def camera_file(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """The film that the fake camera plays again and again."""
    film = tmp_path_factory.mktemp("camera") / "pictures.mjpeg"
    with film.open("wb") as out:
        for name in CAMERA_PICTURES:
            frame = Image.new("RGB", CAMERA_SIZE, "white")
            with Image.open(pictures / name) as picture:
                picture.thumbnail(CAMERA_SIZE)
                corner = ((frame.width - picture.width) // 2, (frame.height - picture.height) // 2)
                frame.paste(picture, corner)
            jpeg = io.BytesIO()
            frame.save(jpeg, "JPEG", quality=95)
            out.write(jpeg.getvalue() * CAMERA_FRAMES)
    return film


@pytest.fixture(scope="session")
def browser(chromium: Callable[..., Any], camera_file: Path) -> Iterator[Any]:
    """A browser whose camera shows the sample pictures."""
    browser = chromium(
        "--use-fake-device-for-media-stream", f"--use-file-for-fake-video-capture={camera_file}"
    )
    yield browser
    browser.close()


@pytest.fixture
def open_page(browser: Any, server: LiveServer) -> Iterator[Callable[..., Any]]:
    """Open the page and wait for the model.

    At the end of the test no message of the console may be an error, and no request may have gone
    to another host. `expects` is a text of the messages that a test provokes.
    """
    contexts, faults, expected = [], [], []

    def open_at(
        url: str = server.url,
        *,
        expects: str | None = None,
        camera: bool = False,
        is_ready: bool = True,
        started: Any = browser,
        before: Callable[[Any], None] = lambda page: None,
        **options: Any,
    ) -> Any:
        context = started.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(SECONDS * 1000)
        if camera:
            context.grant_permissions(["camera"])
        expected.append(expects)
        host = urlsplit(url).netloc

        def note_message(message: Any) -> None:
            if message.type in ("error", "warning"):
                faults.append(message.text)

        def note_request(request: Any) -> None:
            address = urlsplit(request.url)
            if address.scheme in ("http", "https", "ws", "wss") and address.netloc != host:
                faults.append(f"request to {request.url}")

        context.on("request", note_request)
        context.on("weberror", lambda error: faults.append(str(error.error)))
        page = context.new_page()
        page.on("console", note_message)
        before(page)
        page.goto(url)
        if is_ready:
            playwright.expect(page.locator("#load-status")).to_have_attribute("data-state", "ready")
        return page

    yield open_at
    for context in contexts:
        context.close()
    provoked = [text for text in expected if text is not None]
    assert [fault for fault in faults if not any(text in fault for text in provoked)] == []


@pytest.fixture
def page(open_page: Callable[..., Any]) -> Any:
    """The page without a camera."""
    return open_page()


@pytest.fixture
def camera_page(open_page: Callable[..., Any]) -> Any:
    """The page with the camera running."""
    page = open_page(camera=True)
    playwright.expect(page.locator("#video")).to_be_visible()
    return page
