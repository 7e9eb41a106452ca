"""OpenAI's client for JavaScript against the server; npm installs it."""

import base64
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from live_server import LiveServer

SCRIPT = """
import OpenAI from "openai";
const [url, picture, prompt] = process.argv.slice(2);
const client = new OpenAI({baseURL: url + "/v1", apiKey: "none", maxRetries: 0});
const messages = [{role: "user", content: [
  {type: "image_url", image_url: {url: picture}}, {type: "text", text: prompt}]}];
const models = [];
for await (const model of client.models.list()) models.push(model.id);
const whole = await client.chat.completions.create({model: "demo", messages});
let streamed = "", usage = null;
const stream = await client.chat.completions.create(
  {model: "demo", messages, stream: true, stream_options: {include_usage: true}});
for await (const chunk of stream) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
let error = null;
try { await client.chat.completions.create({model: "other", messages}); }
catch (caught) { error = [caught.constructor.name, caught.status, caught.code]; }
const text = whole.choices[0].message.content;
console.log(JSON.stringify({models, text, streamed, usage, error}));
"""


@pytest.mark.slow
def test_the_npm_client_chats_and_streams(
    server: LiveServer, picture: Path, questions: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "openai"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    (tmp_path / "client.mjs").write_text(SCRIPT)
    prompt, expected = next(iter(questions[picture.name].items()))
    uri = "data:image/jpeg;base64," + base64.b64encode(picture.read_bytes()).decode()
    done = subprocess.run(
        ["node", "client.mjs", server.url, uri, prompt],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["models"] == ["demo"]
    assert found["text"] == found["streamed"] == expected
    assert found["usage"]["completion_tokens"] > 0
    assert found["error"] == ["NotFoundError", 404, "model_not_found"]
