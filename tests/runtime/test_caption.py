"""`fastvlm-onnx caption`: a line for every image, also after an interrupted run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import refusal, run
from PIL import Image

from fastvlm_onnx import FastVLM
from fastvlm_onnx.runtime.captions.destination import caption_file

PROMPT = "Describe the image."


@pytest.fixture
def photos(tmp_path: Path, picture: Path, questions: dict) -> Path:
    """The sample pictures in two folders, and a text file."""
    folder = tmp_path / "photos"
    (folder / "inner").mkdir(parents=True)
    for number, name in enumerate(questions):
        place = folder / "inner" if number % 2 else folder
        (place / name).write_bytes(picture.with_name(name).read_bytes())
    (folder / "notes.txt").write_text("no picture")
    return folder


def captions_in(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_folder_becomes_lines(
    photos: Path, package: Path, model: FastVLM, tmp_path: Path
) -> None:
    output = tmp_path / "captions.jsonl"
    done = run("caption", photos, "--model", package, "-o", output, "--batch-size", 2)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    found = captions_in(output.read_text())
    assert [line["path"] for line in found] == sorted(
        str(p) for p in photos.rglob("*") if p.suffix in (".png", ".jpg")
    )
    for line in found:
        assert list(line) == ["path", "text", "finish_reason", "seconds"]
        assert line["text"] == model.generate(line["path"], PROMPT).text
        assert line["seconds"] > 0


def test_patterns_names_and_standard_input(photos: Path, package: Path, questions: dict) -> None:
    names = [str(photos / "*.png"), str(next(photos.glob("*.png")))]
    done = run("caption", *names, "--model", package, "--max-new-tokens", 3)
    assert done.returncode == 0, done.stderr
    found = [line["path"] for line in captions_in(done.stdout)]
    assert found == sorted(set(map(str, photos.glob("*.png"))))
    command = [sys.executable, "-m", "fastvlm_onnx", "caption", "-", "--model", str(package)]
    piped = subprocess.run(
        command, input="\n".join(found) + "\n\n", capture_output=True, text=True, check=True
    )
    assert [line["path"] for line in captions_in(piped.stdout)] == found


def test_a_bad_picture_is_a_line_and_the_run_goes_on(photos: Path, package: Path) -> None:
    (photos / "broken.png").write_bytes(b"no picture")
    gone = photos / "gone.png"
    done = run("caption", photos, gone, "--model", package, "--max-new-tokens", 2)
    assert done.returncode == 3
    found = {Path(line["path"]).name: line for line in captions_in(done.stdout)}
    assert "not a picture" in found["broken.png"]["error"]
    assert "no such picture" in found["gone.png"]["error"]
    assert sum("text" in line for line in found.values()) == len(found) - 2
    assert f"2 of {len(found)} pictures could not be read" in done.stderr


@pytest.fixture
def many(tmp_path: Path) -> Path:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(60):
        Image.new("RGB", (40, 30), (number * 4, 90, 200 - number)).save(folder / f"{number:02}.png")
    return folder


def test_resume_after_a_kill_writes_every_picture_exactly_once(
    many: Path, package: Path, tmp_path: Path
) -> None:
    output = tmp_path / "captions.jsonl"
    command = ["caption", many, "--model", package, "-o", output, "--batch-size", 2]
    process = subprocess.Popen([sys.executable, "-m", "fastvlm_onnx", *map(str, command)])
    deadline = time.monotonic() + 60
    while not (output.exists() and output.read_bytes().count(b"\n") >= 5):
        assert time.monotonic() < deadline
        assert process.poll() is None, "over before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = output.read_bytes()
    whole = left[: left.rindex(b"\n") + 1]
    assert whole.count(b"\n") < 60
    output.write_bytes(whole + b'{"path": "begun')  # as a line that was being written
    done = run(*command, "--resume")
    assert done.returncode == 0, done.stderr
    paths = [line["path"] for line in captions_in(output.read_text())]
    assert sorted(paths) == sorted(map(str, many.iterdir()))
    assert output.read_bytes().startswith(whole)
    assert "every picture is there already" in run(*command, "--resume").stderr


def test_a_file_that_is_there_is_not_written_over(
    photos: Path, package: Path, tmp_path: Path
) -> None:
    output = tmp_path / "captions.jsonl"
    output.write_text("mine\n")
    command = ("caption", photos, "--model", package, "-o", output)
    assert "exists already; append to it with --resume" in refusal(*command)
    assert "line 1 is not a caption" in refusal(*command, "--resume")
    assert output.read_text() == "mine\n"


def test_a_file_that_another_run_is_writing_is_refused(
    photos: Path, package: Path, tmp_path: Path
) -> None:
    output = tmp_path / "captions.jsonl"
    output.touch()
    with caption_file(output, resume=True):
        line = refusal("caption", photos, "--model", package, "-o", output, "--resume")
    assert "another run is writing it" in line
    done = run("caption", photos, "--model", package, "-o", output, "--max-new-tokens", 2)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["captions.jsonl"]


def test_resume_tries_unreadable_pictures_again(
    photos: Path, package: Path, picture: Path, tmp_path: Path
) -> None:
    broken = photos / "broken.png"
    broken.write_bytes(b"no picture")
    output = tmp_path / "captions.jsonl"
    command = ("caption", photos, "--model", package, "-o", output, "--max-new-tokens", 2)
    assert run(*command).returncode == 3
    first = captions_in(output.read_text())
    assert str(broken) in {line["path"] for line in first if "error" in line}

    still_broken = run(*command, "--resume")
    assert still_broken.returncode == 3
    assert f"1 of {len(first)} pictures could not be read" in still_broken.stderr
    assert sorted(line["path"] for line in captions_in(output.read_text())) == sorted(
        line["path"] for line in first
    )

    broken.write_bytes(picture.read_bytes())
    repaired = run(*command, "--resume")
    assert repaired.returncode == 0, repaired.stderr
    lines = captions_in(output.read_text())
    assert len(lines) == len(first)
    assert all("text" in line for line in lines)


def test_resume_reports_errors_of_pictures_that_are_not_asked_about(
    photos: Path, package: Path, picture: Path, tmp_path: Path
) -> None:
    output = tmp_path / "captions.jsonl"
    options = ("--model", package, "-o", output, "--max-new-tokens", 2)
    assert run("caption", picture, photos / "gone.png", *options).returncode == 3
    before = output.read_bytes()
    done = run("caption", picture, *options, "--resume")
    assert done.returncode == 3
    assert "every picture is there already" in done.stderr
    assert "1 of 2 pictures could not be read" in done.stderr
    assert output.read_bytes() == before


def test_a_run_that_cannot_begin_keeps_the_error_lines(
    photos: Path, package: Path, tmp_path: Path
) -> None:
    output = tmp_path / "captions.jsonl"
    command = ("caption", photos / "gone.png", "--model", package, "-o", output)
    assert run(*command).returncode == 3
    before = output.read_bytes()
    assert "has no int3 variant" in refusal(*command, "--resume", "--precision", "int3")
    assert output.read_bytes() == before


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the size of a file")
def test_a_full_disk_leaves_whole_lines(many: Path, package: Path, tmp_path: Path) -> None:
    """The limit on a file's size stands in for the disk's end."""
    output = tmp_path / "captions.jsonl"
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from fastvlm_onnx.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    command = ["caption", str(many), "--model", str(package), "-o", str(output)]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True)
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert "go on with --resume" in done.stderr
    content = output.read_text()
    assert content.endswith("\n")
    assert 0 < len(captions_in(content)) < 60
    assert run(*command, "--resume").returncode == 0
    paths = [line["path"] for line in captions_in(output.read_text())]
    assert sorted(paths) == sorted(map(str, many.iterdir()))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has file names that are not UTF-8")
def test_file_names_that_are_not_utf8_are_kept(
    tmp_path: Path, package: Path, picture: Path
) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    name = os.fsencode(folder) + b"/caf\xe9.png"
    Path(os.fsdecode(name)).write_bytes(picture.read_bytes())
    output = tmp_path / "captions.jsonl"
    command = ("caption", folder, "--model", package, "-o", output, "--max-new-tokens", 2)
    assert run(*command).returncode == 0
    (line,) = captions_in(output.read_text("utf-8"))
    assert os.fsencode(line["path"]) == name
    assert "every picture is there already" in run(*command, "--resume").stderr
    piped = subprocess.run(
        [sys.executable, "-m", "fastvlm_onnx", "caption", "-", "--model", str(package)],
        input=name + b"\n",
        capture_output=True,
        check=True,
    )
    assert os.fsencode(json.loads(piped.stdout)["path"]) == name


def test_caption_ends_quietly_when_the_reader_of_stdout_leaves(many: Path, package: Path) -> None:
    command = [sys.executable, "-m", "fastvlm_onnx", "caption", str(many), "--model", str(package)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors == b""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing argument"),
        (["{empty}"], "found no pictures"),
        (["{empty}/*.png"], "found no pictures"),
        ([""], "a path is empty"),
        (["x.png", "--batch-size", "0"], "--batch-size is 0"),
        (["x.png", "--resume"], "--resume needs -o FILE"),
        (["x.png", "--prompt", " "], "the prompt is empty"),
        (["x.png", "-o", "{empty}/no/where.jsonl"], "cannot be written"),
    ],
)
def test_bad_arguments_of_caption_are_refused_in_one_line(
    tmp_path: Path, package: Path, arguments: list[str], words: str
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    filled = [argument.format(empty=empty) for argument in arguments]
    assert words in refusal("caption", *filled, "--model", package)
    assert not list(empty.iterdir())


def test_a_run_that_cannot_begin_leaves_no_file(
    photos: Path, package: Path, tmp_path: Path
) -> None:
    output = tmp_path / "captions.jsonl"
    command = ("caption", photos, "--model", package, "-o", output, "--precision", "int3")
    assert "has no int3 variant" in refusal(*command)
    assert not output.exists()
