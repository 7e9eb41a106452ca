"""`fastvlm-onnx chat`: in a terminal, and piped."""

import io
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import click
import pytest

from fastvlm_onnx import FastVLM, ProviderError
from fastvlm_onnx.commands.chat import Terminal

PROMPT = "Describe the image."


def piped(text: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastvlm_onnx", "chat", *map(str, arguments)]
    return subprocess.run(command, input=text, capture_output=True, text=True)


def test_piped_lines_are_answered_on_standard_output(
    package: Path, picture: Path, model: FastVLM
) -> None:
    done = piped(f"{PROMPT}\n\nHow many?\n", picture, "--model", package)
    assert (done.returncode, done.stderr) == (0, "")
    with model.chat() as chat:
        expected = [chat.ask(PROMPT, picture).text, chat.ask("How many?").text]
    assert done.stdout.splitlines() == expected


def test_chat_commands_begin_with_a_slash(package: Path, picture: Path, model: FastVLM) -> None:
    lines = ["/stats", f"/image {picture}", PROMPT, "/reset", f"/image {picture}", PROMPT]
    done = piped("\n".join([*lines, "/stats", "/exit", "never asked"]), "--model", package)
    assert done.returncode == 0
    answer = model.generate(picture, PROMPT).text
    assert done.stdout.splitlines() == [answer, answer]
    nothing, stats = done.stderr.splitlines()
    assert nothing == "0 turns; no answer is complete yet"
    assert stats.startswith("1 turns, ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("/image nowhere.png", "nowhere.png: no such picture"),
        ("/image", "/image needs a path"),
        ("/fly", "/fly is not a command; /image PATH"),
    ],
)
def test_a_wrong_line_ends_a_piped_chat_with_exit_code_2(
    package: Path, text: str, words: str
) -> None:
    done = piped(f"{text}\nHi\n", "--model", package)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stdout == ""


def test_chat_refuses_an_unreadable_picture_before_a_question(package: Path) -> None:
    done = piped("Hi\n", "nowhere.png", "--model", package)
    assert done.returncode == 2
    assert "no such picture" in done.stderr


class InTerminal:
    """The command with a terminal of its own."""

    def __init__(self, *arguments: object) -> None:
        pty = pytest.importorskip("pty", reason="this system has no terminals to give")
        self._ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "fastvlm_onnx", "chat", *map(str, arguments)]
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            # Tests run in the background are started with it ignored, which is inherited.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        os.close(theirs)
        self.shown = ""

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 20
        while text not in self.shown:
            left = deadline - time.monotonic()
            readable, _, _ = select.select([self._ours], [], [], max(0, left))
            assert readable, f"{text!r} did not come, but {self.shown!r}"
            try:
                self.shown += os.read(self._ours, 4096).decode()
            except OSError:  # the other end is closed
                assert text in self.shown, self.shown
        self.shown = self.shown.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())


@pytest.fixture
def terminal(package: Path, picture: Path) -> Iterator[InTerminal]:
    terminal = InTerminal(picture, "--model", package, "--max-new-tokens", "60")
    terminal.wait_for("> ")
    yield terminal
    terminal.process.kill()
    terminal.process.wait()


def test_a_terminal_shows_answers_and_ends_with_exit(
    terminal: InTerminal, model: FastVLM, picture: Path
) -> None:
    terminal.type(f"{PROMPT}\n")
    terminal.wait_for(model.generate(picture, PROMPT).text)
    terminal.wait_for("> ")
    terminal.type("/fly\n")
    terminal.wait_for("error: /fly is not a command")
    terminal.wait_for("> ")
    terminal.type("/exit\n")
    assert terminal.process.wait(30) == 0


def test_ctrl_c_drops_the_typed_line_and_the_chat_continues(
    terminal: InTerminal, model: FastVLM, picture: Path
) -> None:
    terminal.type("never mind")
    terminal.wait_for("never mind")
    time.sleep(0.2)  # readline hears of a signal only while it waits for a key
    terminal.process.send_signal(signal.SIGINT)
    terminal.wait_for("> ")
    terminal.type(f"{PROMPT}\n")
    terminal.wait_for(model.generate(picture, PROMPT).text)
    terminal.wait_for("> ")
    terminal.type("\x04")  # the end of what is typed
    assert terminal.process.wait(30) == 0


def test_the_arrow_key_brings_back_an_earlier_line(
    terminal: InTerminal, model: FastVLM, picture: Path
) -> None:
    pytest.importorskip("readline", reason="this Python was built without readline")
    answer = model.generate(picture, PROMPT).text
    terminal.type(f"{PROMPT}\n")
    terminal.wait_for(answer)
    terminal.wait_for("> ")
    terminal.type("\x1b[A")
    terminal.wait_for(PROMPT)
    terminal.type("\n")
    terminal.wait_for("> ")


def test_ctrl_c_stops_an_answer_and_the_chat_continues(
    model: FastVLM, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process: an interrupt in the middle of an answer is no matter of luck here."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("Describe the image.\nAnd now?\n"))
    told = []

    def interrupt(token_id: int) -> None:
        told.append(token_id)
        if len(told) == 3:
            raise KeyboardInterrupt

    with model.chat() as chat:
        terminal = Terminal(chat, {"max_new_tokens": 8, "on_token": interrupt})
        terminal.add_image(str(picture))
        terminal.run()
        assert [turn.has_image for turn in chat.turns] == [True, False]
        assert len(chat.turns[0].token_ids) == 3


def test_ctrl_c_while_text_is_printed_stops_the_answer(
    model: FastVLM, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Describe the image.\nAnd now?\n"))
    echo, shown = click.echo, []

    def interrupt(*arguments: object, **named: object) -> None:
        shown.append(arguments)
        if len(shown) == 2:
            raise KeyboardInterrupt
        echo(*arguments, **named)

    monkeypatch.setattr(click, "echo", interrupt)
    with model.chat() as chat:
        terminal = Terminal(chat, {"max_new_tokens": 8})
        terminal.add_image(str(picture))
        terminal.run()
        assert [turn.has_image for turn in chat.turns] == [True, False]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ProviderError])
def test_the_picture_of_an_unanswered_question_stays_for_the_next(
    model: FastVLM, picture: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    encoder, tried = model.image_encoder, []
    encode = encoder.encode

    def fail_once(*arguments: object, **named: object) -> object:
        tried.append(0)
        if len(tried) == 1:
            raise failure("no memory")
        return encode(*arguments, **named)

    monkeypatch.setattr(encoder, "encode", fail_once)
    monkeypatch.setattr(sys, "stdin", Typed(["Describe the image.", "Again?"]))
    monkeypatch.setattr("builtins.input", lambda _: sys.stdin.readline())
    with model.chat() as chat:
        terminal = Terminal(chat, {"max_new_tokens": 4})
        terminal.add_image(str(picture))
        terminal.run()
        assert [(turn.prompt, turn.has_image) for turn in chat.turns] == [("Again?", True)]


class Typed:
    """A terminal's lines, in this process."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = iter(lines)

    def isatty(self) -> bool:
        return True

    def readline(self) -> str:
        try:
            return next(self._lines)
        except StopIteration:
            raise EOFError from None


def test_ctrl_c_ends_a_piped_chat_that_waits(package: Path) -> None:
    command = [sys.executable, "-m", "fastvlm_onnx", "chat", "--model", str(package)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("Hi\n")
    process.stdin.flush()
    process.stdout.readline()
    time.sleep(0.2)  # it waits for the next line by then
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors.strip()) == (130, "interrupted")
