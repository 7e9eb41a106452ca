"""`fastvlm-onnx chat`."""

import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from fastvlm_onnx.commands.default_package import package_or_default
from fastvlm_onnx.commands.generation_options import generation_options
from fastvlm_onnx.commands.load_options import LoadOptions, load_options
from fastvlm_onnx.console import say
from fastvlm_onnx.errors import FastVLMError, InputError

if TYPE_CHECKING:
    from fastvlm_onnx.runtime.answering.chat import Chat
    from fastvlm_onnx.runtime.answering.results import Generation
    from fastvlm_onnx.runtime.engine.options import GenerationOptions

COMMANDS_HELP = "/image PATH adds a picture, /reset starts anew, /stats shows times, /exit ends"


@click.command()
@click.argument("image", required=False)
@click.option("--model", help="An exported folder, or the hub id of a package.")
@load_options
@generation_options("max_new_tokens", "temperature", "seed", "orient")
@click.option("--drop-oldest", is_flag=True, help="Drop the oldest turns when the context is full.")
def chat(
    image: str | None,
    model: str | None,
    options: LoadOptions,
    generation: "GenerationOptions",
    drop_oldest: bool,
) -> None:
    """Talk about pictures in the terminal, or answer standard input line by line.

    Lines that begin with a slash are commands: /image PATH, /reset, /stats, /exit. Ctrl-C stops an
    answer.
    """
    options.register_libraries()
    loaded = options.load(package_or_default(model))
    with loaded, loaded.chat(drop_oldest=drop_oldest) as conversation:
        terminal = Terminal(conversation, generation)
        if image is not None:
            terminal.add_image(image)
        terminal.run()


class Terminal:
    """Reads lines from standard input and shows the conversation."""

    def __init__(self, chat: "Chat", options: "GenerationOptions") -> None:
        self._chat, self._options = chat, options
        self._image: str | None = None
        self._latest: Generation | None = None
        # With a pipe as standard input, only answers are printed.
        self._is_interactive = sys.stdin is not None and sys.stdin.isatty()

    def run(self) -> None:
        """Answer lines until /exit or the end of standard input."""
        if self._is_interactive:
            self._keep_history()
            say(f"{COMMANDS_HELP}.")
        while (line := self._read()) is not None:
            line = line.strip()
            if not line:
                continue
            if line == "/exit":
                return
            try:
                if line.startswith("/"):
                    self._run_command(line)
                else:
                    self._answer(line)
            except FastVLMError as error:
                # The line had no effect on the conversation.
                say(f"error: {error}")
                if not self._is_interactive:
                    sys.exit(2)

    def add_image(self, path: str) -> None:
        """Add a picture to the next question.

        Raises:
            InputError: the picture cannot be read.
        """
        from fastvlm_onnx.runtime.vision.image import read_picture

        read_picture(path)
        self._image = path

    def _read(self) -> str | None:
        while True:
            try:
                if self._is_interactive:
                    return input("> ")
                line = sys.stdin.readline() if sys.stdin else ""
                return line or None
            except EOFError:
                say()
                return None
            except UnicodeDecodeError:
                raise InputError("a line of standard input is not UTF-8; convert it.") from None
            except KeyboardInterrupt:
                if not self._is_interactive:
                    raise
                say()  # the line is dropped

    def _run_command(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        if command == "/image":
            if not rest.strip():
                raise InputError("/image needs a path, for example /image photo.jpg.")
            self.add_image(rest.strip())
        elif command == "/reset":
            self._chat.reset()
            self._image = self._latest = None
        elif command == "/stats":
            self._print_stats()
        else:
            raise InputError(f"{command} is not a command; {COMMANDS_HELP}.")

    def _answer(self, question: str) -> None:
        before, pieces = self._chat.turns, None
        try:
            pieces = self._chat.stream(question, self._image, **self._options)
            for piece in pieces:
                click.echo(piece.text, nl=False)
                sys.stdout.flush()
                self._latest = piece.generation
        except KeyboardInterrupt:
            click.echo(" ...", nl=False)
        finally:
            if pieces is not None:
                pieces.close()  # the answer so far becomes part of the conversation
            if self._chat.turns is not before:  # without a turn, the next question has the picture
                self._image = None
        click.echo()

    def _print_stats(self) -> None:
        turns = len(self._chat.turns)
        if self._latest is None:
            say(f"{turns} turns; no answer is complete yet")
            return
        timings = self._latest.timings
        say(
            f"{turns} turns, {self._latest.prompt_tokens} tokens before the latest answer; vision "
            f"{timings.vision:.3f} s, prefill {timings.prefill:.3f} s, first token "
            f"{timings.first_token:.3f} s, {timings.tokens_per_second:.1f} tokens a second"
        )

    def _keep_history(self) -> None:
        """Let arrow keys bring back earlier lines, if Python was built with readline."""
        with suppress(ImportError):
            import readline  # noqa: F401  input() uses the module once it is imported
