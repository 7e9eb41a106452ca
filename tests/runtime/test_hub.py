"""Exported packages by their id on a hub, served from a folder over HTTP."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub import COMMIT, serve_bytes, serve_hub

ID = "someone/demo-onnx"
PROMPT = "What does the image say?"


@pytest.fixture
def cache(tmp_path: Path) -> dict[str, str]:
    return {"HF_HOME": str(tmp_path / "cache")}


def generate(model: str, picture: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: huggingface_hub reads its settings when it is imported."""
    command = [sys.executable, "-m", "fastvlm_onnx", "generate", picture, PROMPT, "--model", model]
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=os.environ | environment
    )


def refusal(model: str, picture: Path, **environment: str) -> str:
    done = generate(model, picture, **environment)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    (line,) = done.stderr.splitlines()
    return line


def cached_files(tmp_path: Path) -> set[str]:
    snapshots = tmp_path / "cache/hub/models--someone--demo-onnx/snapshots"
    return {path.name for path in snapshots.rglob("*") if path.is_file()}


@pytest.mark.parametrize("model", [ID, f"{ID}@{COMMIT}"])
def test_a_package_is_downloaded_once_and_then_needs_no_network(
    model: str, copied_package: Path, tmp_path: Path, cache: dict[str, str], word: Path
) -> None:
    (copied_package / "notes.txt").write_text("not in the manifest")
    with serve_hub(ID, copied_package) as address:
        online = generate(model, word, HF_ENDPOINT=address, **cache)
    assert (online.returncode, online.stdout) == (0, "History\n"), online.stderr
    assert online.stderr == ""
    named = {path.name for path in copied_package.iterdir()} - {"notes.txt"}
    assert cached_files(tmp_path) == named
    offline = generate(model, word, HF_HUB_OFFLINE="1", **cache)
    assert (offline.returncode, offline.stdout) == (0, "History\n"), offline.stderr


def test_the_default_package_may_be_a_hub_id(
    package: Path, cache: dict[str, str], word: Path
) -> None:
    command = [sys.executable, "-m", "fastvlm_onnx", "generate", str(word), PROMPT]
    with serve_hub(ID, package) as address:
        environment = {"HF_ENDPOINT": address, "FASTVLM_ONNX_MODEL": ID, **cache}
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert done.stdout == "History\n", done.stderr
    assert done.stderr == f"model: {ID} ($FASTVLM_ONNX_MODEL)\n"


def test_load_takes_a_hub_id_and_prints_nothing(
    package: Path, cache: dict[str, str], word: Path
) -> None:
    code = (
        "import sys, fastvlm_onnx\n"
        "with fastvlm_onnx.load(sys.argv[1]) as model:\n"
        "    text = model.generate(sys.argv[2], sys.argv[3]).text\n"
        "sys.exit(0 if text == 'History' else text)\n"
    )
    with serve_hub(ID, package) as address:
        done = subprocess.run(
            [sys.executable, "-c", code, ID, str(word), PROMPT],
            capture_output=True,
            text=True,
            env=os.environ | cache | {"HF_ENDPOINT": address},
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_repository_without_a_package_is_refused_before_its_files_are_downloaded(
    tmp_path: Path, cache: dict[str, str], word: Path
) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(1000))
    with serve_hub(ID, folder) as address:
        line = refusal(ID, word, HF_ENDPOINT=address, **cache)
    assert "found no fastvlm.json on Hugging Face" in line
    assert f"fastvlm-onnx export {ID} -o DIR" in line
    assert cached_files(tmp_path) == set()


def test_a_manifest_that_cannot_be_read_is_refused_before_its_files_are_downloaded(
    copied_package: Path, tmp_path: Path, cache: dict[str, str], word: Path
) -> None:
    (copied_package / "fastvlm.json").write_text("{")
    with serve_hub(ID, copied_package) as address:
        assert "cannot be read as JSON" in refusal(ID, word, HF_ENDPOINT=address, **cache)
    assert cached_files(tmp_path) == {"fastvlm.json"}


def test_an_interrupted_download_continues(
    copied_package: Path, tmp_path: Path, cache: dict[str, str], word: Path
) -> None:
    missing = copied_package / "decoder.fp32.onnx.data"
    content = missing.read_bytes()
    missing.unlink()
    with serve_hub(ID, copied_package) as address:
        line = refusal(ID, word, HF_ENDPOINT=address, **cache)
        assert "1 of " in line
        assert "decoder.fp32.onnx.data" in line
    assert "decoder.fp32.onnx" in cached_files(tmp_path)
    missing.write_bytes(content)
    # Newer versions of huggingface_hub keep the list of a commit's files, which is final on a hub.
    shutil.rmtree(tmp_path / "cache/hub/models--someone--demo-onnx/trees", ignore_errors=True)
    with serve_hub(ID, copied_package) as address:
        done = generate(ID, word, HF_ENDPOINT=address, **cache)
    assert done.stdout == "History\n", done.stderr


def test_a_hub_that_refuses_is_one_line(package: Path, cache: dict[str, str], word: Path) -> None:
    with serve_hub(ID, package, status=403) as address:
        line = refusal(ID, word, HF_ENDPOINT=address, **cache)
    assert f"{ID}: cannot be downloaded from Hugging Face" in line


OK = b'HTTP/1.1 200 OK\r\nETag: "1"\r\nX-Repo-Commit: '
RUBBISH = {
    "a page to log in": b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n<html>Log in!</",
    "a redirect to a file": b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n",
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "headers of 8 MB": b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 1_000_000,
    "a body that is cut": OK + COMMIT.encode() + b"\r\nContent-Length: 99999\r\n\r\n{",
    "a commit that is a path": OK + b"../../../x\r\nContent-Length: 2\r\n\r\n{}",
    "no manifest": OK + COMMIT.encode() + b"\r\nContent-Length: 2\r\n\r\n{}",
}


@pytest.mark.parametrize("answer", RUBBISH.values(), ids=RUBBISH)
def test_a_hub_that_answers_with_rubbish_is_one_line(
    answer: bytes, tmp_path: Path, cache: dict[str, str], word: Path
) -> None:
    with serve_bytes(answer) as address:
        line = refusal(ID, word, HF_ENDPOINT=f"http://{address}", **cache)
    assert line.startswith("error: ")
    assert len(line) <= 400
    assert cached_files(tmp_path) <= {"fastvlm.json"}
    assert not (tmp_path / "x").exists()


def test_an_unknown_id_is_one_line(package: Path, cache: dict[str, str], word: Path) -> None:
    with serve_hub(ID, package) as address:
        line = refusal("someone/else", word, HF_ENDPOINT=address, **cache)
    assert "no such repository" in line
    line = refusal("someone/else", word, HF_HUB_OFFLINE="1", **cache)
    assert "not in the cache" in line


def test_a_folder_that_exists_is_not_a_hub_id(
    copied_package: Path, cache: dict[str, str], word: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copied_package.parent.parent)
    model = str(copied_package.relative_to(copied_package.parent.parent))
    assert model.count("/") == 1
    done = generate(model, word, HF_HUB_OFFLINE="1", **cache)
    assert done.stdout == "History\n", done.stderr


def test_a_mistyped_path_is_not_a_hub_id(
    tmp_path: Path, word: Path, cache: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with serve_hub("models/demo-onnx", tmp_path) as address:
        line = refusal("models/demo-onnx", word, HF_ENDPOINT=address, **cache)
    assert "models/demo-onnx: no such folder" in line


@pytest.fixture
def word(picture: Path) -> Path:
    return picture.with_name("word.png")
