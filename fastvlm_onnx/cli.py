"""The commands' entry. Each command imports its side only when it runs, so `--help` is fast.

Answers go to stdout, and nothing else does. Exit codes: 0 done, 1 a fault of this program, 2 a
fault of the caller, 3 some of many pictures could not be read, 130 interrupted.
"""

import logging
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import click

import fastvlm_onnx
from fastvlm_onnx.commands.bench import bench
from fastvlm_onnx.commands.cache import cache
from fastvlm_onnx.commands.caption import caption
from fastvlm_onnx.commands.chat import chat
from fastvlm_onnx.commands.demo import demo
from fastvlm_onnx.commands.doctor import doctor
from fastvlm_onnx.commands.download import download
from fastvlm_onnx.commands.export import export
from fastvlm_onnx.commands.generate import generate
from fastvlm_onnx.commands.inspect import inspect
from fastvlm_onnx.commands.serve import serve
from fastvlm_onnx.commands.verify import verify
from fastvlm_onnx.errors import FastVLMError
from fastvlm_onnx.telemetry import disable_telemetry


@dataclass
class Invocation:
    """Settings of one call of `main` that options before the command's name change."""

    debug: bool = False


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit.

    Args:
        arguments: the command line without the program's name; the process's own when None.

    Raises:
        SystemExit: always, but for a command that is done.
    """
    # Any package that a command imports may import ONNX Runtime first.
    disable_telemetry()
    invocation = Invocation()
    try:
        with _warnings_for_people():
            cli(arguments, prog_name="fastvlm-onnx", standalone_mode=False, obj=invocation)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        click.echo(f"error: {error.format_message()} {_where_to_read(error)}", err=True)
        sys.exit(2)
    except FastVLMError as error:
        if invocation.debug:
            traceback.print_exc()
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of stdout left. Python would complain when it flushes stdout at exit.
        sys.stdout = None
        sys.exit(1)


@contextmanager
def _warnings_for_people() -> Iterator[None]:
    """Show the library's log warnings on stderr, and hide Python's warnings.

    Pillow warns of a large picture, and image.py has its own limit. A program that calls `main`
    gets its own settings back.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    log = logging.getLogger("fastvlm_onnx")
    log.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.removeHandler(handler)


def _where_to_read(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"See `{context.command_path if context else 'fastvlm-onnx'} --help`."


def _set_debug(context: click.Context, _: click.Parameter, debug: bool) -> None:
    context.ensure_object(Invocation).debug = debug


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(fastvlm_onnx.__version__, message="%(version)s")
@click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    callback=_set_debug,
    help="Show a traceback with every error.",
)
def cli() -> None:
    """Apple's FastVLM in ONNX Runtime: export a checkpoint, ask about pictures."""


COMMANDS = (
    download,
    export,
    verify,
    generate,
    chat,
    caption,
    serve,
    inspect,
    bench,
    doctor,
    cache,
    demo,
)
for command in COMMANDS:
    cli.add_command(command)
