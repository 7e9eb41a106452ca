"""`fastvlm-onnx chat`."""

import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from fastvlm_onnx.commands.load_options import Opening, opening_options
from fastvlm_onnx.errors import FastVLMError, InputError

if TYPE_CHECKING:
    from fastvlm_onnx.runtime.answering.chat import Chat
    from fastvlm_onnx.runtime.answering.results import Generation

HELP = "/image PATH adds a picture, /reset begins anew, /stats says where the time went, /exit ends"


@click.command()
@click.argument("image", required=False)
@click.option("--model", help="An exported folder, or the hub id of a package.")
@opening_options
@click.option("--max-new-tokens", default=256, show_default=True)
@click.option("--temperature", default=0.0, show_default=True, help="0 is greedy.")
@click.option("--seed", type=int, help="Repeat drawn answers.")
@click.option("--orient", is_flag=True, help="Turn pictures as their EXIF data say.")
@click.option("--drop-oldest", is_flag=True, help="Forget the oldest turns where none fits in.")
def chat(
    image: str | None,
    model: str | None,
    opening: Opening,
    max_new_tokens: int,
    temperature: float,
    seed: int | None,
    orient: bool,
    drop_oldest: bool,
) -> None:
    """Talk about pictures in the terminal, or answer standard input line by line.

    Lines that begin with a slash are commands: /image PATH, /reset, /stats, /exit. Ctrl-C stops an
    answer.
    """
    loaded = opening.load(model)
    with loaded, loaded.chat(drop_oldest=drop_oldest) as conversation:
        terminal = Terminal(
            conversation,
            {
                "max_new_tokens": max_new_tokens,
                "temperature": temperature,
                "seed": seed,
                "orient": orient,
            },
        )
        if image is not None:
            terminal.add_image(image)
        terminal.run()


class Terminal:
    """What is typed, and what is shown."""

    def __init__(self, chat: "Chat", options: dict[str, object]) -> None:
        self._chat, self._options = chat, options
        self._image: str | None = None
        self._latest: Generation | None = None
        # Questions and answers are for people here; piped in, only answers are put out.
        self._is_interactive = sys.stdin is not None and sys.stdin.isatty()

    def run(self) -> None:
        """Until /exit or the end of what is typed."""
        if self._is_interactive:
            self._keep_history()
            click.echo(f"{HELP}.", err=True)
        while (line := self._read()) is not None:
            line = line.strip()
            if not line:
                continue
            if line == "/exit":
                return
            try:
                if line.startswith("/"):
                    self._obey(line)
                else:
                    self._answer(line)
            except FastVLMError as error:
                # Of one line; the conversation is as it was.
                click.echo(f"error: {error}", err=True)
                if not self._is_interactive:
                    sys.exit(2)

    def add_image(self, path: str) -> None:
        """Note the picture that comes with the next question.

        Raises:
            InputError: it cannot be read.
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
                click.echo(err=True)
                return None
            except KeyboardInterrupt:
                if not self._is_interactive:
                    raise
                click.echo(err=True)  # what was typed is given up

    def _obey(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        if command == "/image":
            if not rest.strip():
                raise InputError("/image wants the path of a picture.")
            self.add_image(rest.strip())
        elif command == "/reset":
            self._chat.reset()
            self._image = self._latest = None
        elif command == "/stats":
            self._say_stats()
        else:
            raise InputError(f"{command} is no command; {HELP}.")

    def _answer(self, words: str) -> None:
        before, pieces = self._chat.turns, None
        try:
            pieces = self._chat.stream(words, self._image, **self._options)  # type: ignore[arg-type]
            for piece in pieces:
                click.echo(piece.text, nl=False)
                sys.stdout.flush()
                self._latest = piece.generation
        except KeyboardInterrupt:
            click.echo(" ...", nl=False)
        finally:
            if pieces is not None:
                pieces.close()  # the answer so far is part of the conversation
            if self._chat.turns is not before:  # else the picture goes with the next question
                self._image = None
        click.echo()

    def _say_stats(self) -> None:
        turns = len(self._chat.turns)
        if self._latest is None:
            click.echo(f"{turns} turns; nothing was answered to its end yet", err=True)
            return
        timings = self._latest.timings
        click.echo(
            f"{turns} turns, {self._latest.prompt_tokens} tokens before the latest answer; vision "
            f"{timings.vision:.3f} s, prefill {timings.prefill:.3f} s, first token "
            f"{timings.first_token:.3f} s, {timings.tokens_per_second:.1f} tokens a second",
            err=True,
        )

    def _keep_history(self) -> None:
        """Arrow keys bring back earlier lines, where Python was built to."""
        with suppress(ImportError):
            import readline  # noqa: F401  input() uses it once it is imported
