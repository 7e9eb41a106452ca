"""transformers.js opens a folder of `--layout transformers-js`, in Node and in Chromium."""

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fastvlm_onnx.export.layouts.transformers_js import export_transformers_js

pytestmark = pytest.mark.slow
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
NAME = "demo"
LIBRARY = "/node_modules/@huggingface/transformers/dist/transformers.js"
WASM = "/node_modules/onnxruntime-web/dist/"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model's folder in it."""
    root = tmp_path_factory.mktemp("transformers-js")
    export_transformers_js("demo", root / NAME, precisions=["fp32", "int8", "int4"])
    return root


@pytest.mark.parametrize("dtype", ["fp32", "int8", "q4"])
def test_node_answers_every_question(
    dtype: str, root: Path, node_folder: Path, questions: dict, picture: Path, tmp_path: Path
) -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    prompts = {str(picture.with_name(name)): list(asked) for name, asked in questions.items()}
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    command = ["node", node_folder / "answer.mjs", root, NAME, dtype, tmp_path / "prompts.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert list(found.values()) == [list(asked.values()) for asked in questions.values()]


@pytest.fixture
def site(root: Path, node_folder: Path, picture: Path, tmp_path: Path) -> Iterator[str]:
    """Serve the model, the libraries, the pictures and an empty page."""
    for link, target in {
        "models": root,
        "node_modules": node_folder / "node_modules",
        "pictures": picture.parent,
        "answer.mjs": node_folder / "answer.mjs",
    }.items():
        (tmp_path / link).symlink_to(target)
    imports = json.dumps({"imports": {"@huggingface/transformers": LIBRARY}})
    (tmp_path / "index.html").write_text(f'<script type="importmap">{imports}</script>')

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_chromium_answers_in_webassembly(site: str, questions: dict, picture: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        pytest.skip(f"none of {', '.join(CHROMIUM)} is installed")
    asked = questions[picture.name]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, timeout=0)
        page = browser.new_page()
        # A busy machine takes its time, and a browser that dies ends the waiting.
        page.goto(f"{site}/index.html", timeout=0)
        answers = page.evaluate(
            """async ([name, address, prompts, wasm]) => {
                const { answer } = await import("/answer.mjs");
                return await answer("/models/", name, "q4", { [address]: prompts }, wasm);
            }""",
            [NAME, f"/pictures/{picture.name}", list(asked), WASM],
        )
        browser.close()
    assert next(iter(answers.values())) == list(asked.values())
