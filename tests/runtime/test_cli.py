"""The commands as a shell sees them: stdout, stderr, exit codes."""

import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from click.testing import CliRunner
from command_line import refusal, run
from PIL import Image

import fastvlm_onnx
from fastvlm_onnx.cli import cli, main

PROMPT = "Describe the image."


def test_the_answer_goes_to_stdout_and_nothing_else_does(package: Path, picture: Path) -> None:
    done = run("generate", picture, PROMPT, "--model", package)
    expected = fastvlm_onnx.load(package).generate(picture, PROMPT).text
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{expected}\n", "")


def test_json_is_one_object_with_the_promised_keys(package: Path, picture: Path) -> None:
    done = run("generate", picture, PROMPT, "--model", package, "--json")
    answer = json.loads(done.stdout)
    assert list(answer) == [
        "text",
        "token_ids",
        "finish_reason",
        "prompt_tokens",
        "timings",
        "model",
        "precision",
        "providers",
    ]
    assert list(answer["timings"]) == [
        "load",
        "preprocess",
        "vision",
        "prefill",
        "first_token",
        "decode",
        "tokens_per_second",
    ]


def test_stats_go_to_stderr(package: Path, picture: Path) -> None:
    done = run("generate", picture, PROMPT, "--model", package, "--stats")
    assert "first token" in done.stderr
    assert "first token" not in done.stdout


def test_the_model_can_come_from_the_environment(package: Path, picture: Path) -> None:
    done = run("generate", picture, PROMPT, FASTVLM_ONNX_MODEL=str(package))
    assert done.returncode == 0
    assert done.stderr == f"model: {package} ($FASTVLM_ONNX_MODEL)\n"


def test_the_demo_shows_pictures_questions_and_answers(
    package: Path, questions: dict[str, dict[str, str]]
) -> None:
    done = run("demo", "--model", package)
    assert done.returncode == 0
    for name, answers in questions.items():
        assert name in done.stdout
        for prompt, answer in answers.items():
            assert prompt in done.stdout
            assert answer in done.stdout


def test_the_version_is_printed() -> None:
    assert run("--version").stdout == f"{fastvlm_onnx.__version__}\n"


def test_the_commands() -> None:
    assert sorted(cli.commands) == [
        "bench",
        "cache",
        "caption",
        "chat",
        "demo",
        "doctor",
        "download",
        "export",
        "generate",
        "inspect",
        "serve",
        "verify",
    ]


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_command_explains_itself(command: str) -> None:
    done = CliRunner().invoke(cli, [command, "--help"], prog_name="fastvlm-onnx")
    assert done.exit_code == 0
    usage, _, text, *_ = done.stdout.splitlines()
    assert usage.startswith(f"Usage: fastvlm-onnx {command}")
    assert text.strip()


def test_a_traceback_is_shown_only_with_debug(package: Path) -> None:
    arguments = ("generate", "absent.png", PROMPT, "--model", package)
    assert "Traceback" not in run(*arguments).stderr
    assert "Traceback" in run("--debug", *arguments).stderr


def test_debug_is_read_from_the_arguments_given_to_main(
    package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", "absent.png", PROMPT, "--model", str(package)]
    for options, is_shown in (([], False), (["--debug"], True)):
        with pytest.raises(SystemExit):
            main([*options, *arguments])
        assert ("Traceback" in capsys.readouterr().err) == is_shown


def test_main_keeps_the_warning_filters_and_log_handlers_of_its_host(package: Path) -> None:
    log = logging.getLogger("fastvlm_onnx")
    before = (list(warnings.filters), list(log.handlers))
    main(["inspect", str(package)])
    with pytest.raises(SystemExit):
        main(["inspect", "absent"])
    assert (list(warnings.filters), list(log.handlers)) == before


def test_a_reader_of_stdout_that_leaves_early_causes_no_traceback(
    package: Path, picture: Path
) -> None:
    command = [sys.executable, "-m", "fastvlm_onnx", "generate", str(picture), PROMPT]
    process = subprocess.Popen(
        [*command, "--model", str(package)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 1
    assert errors == b""


class TestRefused:
    def test_no_such_picture(self, package: Path) -> None:
        line = refusal("generate", "absent.png", PROMPT, "--model", package)
        assert "absent.png: no such picture" in line

    def test_a_text_file_named_png(self, package: Path, tmp_path: Path) -> None:
        path = tmp_path / "note.png"
        path.write_text("not pixels")
        assert "note.png: not a picture" in refusal("generate", path, PROMPT, "--model", package)

    def test_a_picture_of_a_billion_pixels(self, package: Path, tmp_path: Path) -> None:
        path = tmp_path / "huge.pgm"
        path.write_bytes(b"P5 40000 25000 255\n")
        assert "178,956,970 pixels" in refusal("generate", path, PROMPT, "--model", package)

    def test_an_empty_prompt(self, package: Path, picture: Path) -> None:
        assert "the prompt is empty" in refusal("generate", picture, "", "--model", package)

    def test_a_prompt_longer_than_the_context(self, package: Path, picture: Path) -> None:
        line = refusal("generate", picture, "z" * 5000, "--model", package)
        assert "shorten the prompt by at least" in line

    def test_a_folder_that_is_no_package(self, picture: Path, tmp_path: Path) -> None:
        line = refusal("generate", picture, PROMPT, "--model", tmp_path)
        assert "found no fastvlm.json" in line

    def test_a_damaged_package(self, picture: Path, copied_package: Path) -> None:
        (copied_package / "decoder.fp32.onnx.data").unlink()
        line = refusal("generate", picture, PROMPT, "--model", copied_package)
        assert "decoder.fp32.onnx.data: missing" in line

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("--temperature", "-1"),
            ("--top-p", "2"),
            ("--top-k", "-1"),
            ("--max-new-tokens", "0"),
            ("--seed", "-1"),
            ("--threads", "0"),
            ("--provider", "abacus"),
            ("--precision", "int3"),
            ("--image-size", "100"),
        ],
    )
    def test_an_option_out_of_range(
        self, package: Path, picture: Path, option: str, value: str
    ) -> None:
        line = refusal("generate", picture, PROMPT, "--model", package, option, value)
        assert value.lstrip("-") in line

    def test_an_option_of_another_type(self, package: Path, picture: Path) -> None:
        line = refusal("generate", picture, PROMPT, "--model", package, "--top-k", "many")
        assert "'many' is not a valid integer" in line

    def test_an_unknown_command(self) -> None:
        assert "No such command 'answer'" in refusal("answer")

    def test_a_missing_argument(self) -> None:
        assert "Missing argument 'IMAGE'" in refusal("generate")


def test_a_picture_may_come_through_standard_input(package: Path, picture: Path) -> None:
    command = [sys.executable, "-m", "fastvlm_onnx", "generate", "-", PROMPT, "--model", package]
    done = subprocess.run(command, input=picture.read_bytes(), capture_output=True, check=False)
    assert done.stdout.decode() == run("generate", picture, PROMPT, "--model", package).stdout


def test_an_empty_standard_input_is_refused(package: Path) -> None:
    command = [sys.executable, "-m", "fastvlm_onnx", "generate", "-", PROMPT, "--model", package]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert done.returncode == 2
    assert b"standard input holds no picture" in done.stderr
    assert not done.stdout


def test_a_terminal_as_standard_input_is_refused(package: Path) -> None:
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "fastvlm_onnx", "generate", "-", PROMPT, "--model", package]
    done = subprocess.run(command, stdin=theirs, capture_output=True, check=False, timeout=60)
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 2
    assert b"standard input holds no picture" in done.stderr


def test_a_process_without_standard_input_is_refused(package: Path) -> None:
    command = [sys.executable, "-m", "fastvlm_onnx", "generate", "-", PROMPT, "--model", package]
    closed = ["sh", "-c", 'exec "$@" <&-', "sh", *command]
    done = subprocess.run(closed, capture_output=True, check=False)
    assert done.returncode == 2
    assert b"standard input holds no picture" in done.stderr


def test_a_picture_is_rotated_when_asked_for(package: Path, picture: Path, tmp_path: Path) -> None:
    with Image.open(picture) as upright:
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned clockwise
        stored = upright.convert("RGB").transpose(Image.Transpose.ROTATE_90)
        stored.save(tmp_path / "stored.png", exif=exif)
    expected = run("generate", picture, PROMPT, "--model", package).stdout
    turned = run("generate", tmp_path / "stored.png", PROMPT, "--model", package, "--orient")
    assert turned.stdout == expected


def test_inspect_shows_the_contents_of_a_package(package: Path) -> None:
    done = run("inspect", package)
    assert done.returncode == 0, done.stderr
    first, second, variant = done.stdout.splitlines()
    assert first.startswith("demo: ")
    assert "tokens, a context of" in second
    assert variant.startswith("fp32: ")
    assert variant.endswith("256 pixels; decoder.fp32.onnx; ONNX Runtime 1.20 or later")
    manifest = json.loads(run("inspect", package, "--json").stdout)
    assert list(manifest["variants"]) == ["fp32"]


def test_inspect_finds_an_altered_file(copied_package: Path) -> None:
    (copied_package / "LICENSE_MODEL").write_text("other")
    assert "LICENSE_MODEL" in refusal("inspect", copied_package)
