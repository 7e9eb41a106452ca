"""The commands' entry. Each command imports its side only when it runs, so `--help` is fast.

Answers go to stdout, and nothing else does. Exit codes: 0 done, 1 a fault of this program, 2 a
fault of the caller, 3 some of many pictures could not be read, 130 interrupted, 143 terminated. An
error is one line on stderr.
"""

import errno
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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
from fastvlm_onnx.console import accept_every_character, say
from fastvlm_onnx.errors import FastVLMError, InputError, one_line
from fastvlm_onnx.signals import Terminated, signals_as_exceptions
from fastvlm_onnx.telemetry import disable_telemetry

MEMORY_IS_FULL = "the memory is full; use less of it, or raise its limit."
NO_THREAD = "no further thread can be started; raise the limit of memory or of processes."
# Below, native libraries end the process with their own messages. The built-in model takes more.
LEAST_ADDRESS_SPACE = 600_000_000  # bytes


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
    _open_closed_streams()
    accept_every_character()
    invocation = Invocation()
    try:
        if any("\0" in argument for argument in arguments or ()):
            raise InputError("an argument holds a NUL character, which no path and no text has.")
        with signals_as_exceptions(), _warnings_for_people():
            cli(arguments, prog_name="fastvlm-onnx", standalone_mode=False, obj=invocation)
            _flush_stdout()
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        sys.exit(_refuse(f"{error.format_message()} {_where_to_read(error)}", invocation))
    except FastVLMError as error:
        sys.exit(_refuse(str(error), invocation))
    except (click.Abort, KeyboardInterrupt):
        say("interrupted")
        sys.exit(130)
    except Terminated:
        say("terminated")
        sys.exit(143)
    except BrokenPipeError:
        # The reader of stdout left. Python would complain when it flushes stdout at exit.
        sys.stdout = None
        sys.exit(1)
    except MemoryError:
        sys.exit(_refuse(MEMORY_IS_FULL, invocation))
    except OSError as error:
        _drop_full_stdout()
        sys.exit(_refuse(f"{_described(error)}.", invocation))
    except Exception as error:
        if isinstance(error, ImportError) and "failed to map segment" in str(error):
            sys.exit(_refuse(MEMORY_IS_FULL, invocation))  # no room for a native library
        if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
            sys.exit(_refuse(NO_THREAD, invocation))
        sys.exit(_admit(error, invocation))


def _require_address_space() -> None:
    """Raise InputError where the limit of this process's memory leaves no room for a command."""
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < LEAST_ADDRESS_SPACE:
        raise InputError(
            f"this process may use {limit / 1e6:.0f} MB of address space, expected at least "
            f"{LEAST_ADDRESS_SPACE / 1e6:.0f} MB; raise the limit (ulimit -v)."
        )


def _open_closed_streams() -> None:
    """Lead closed standard streams to nowhere.

    The next file that is opened would otherwise get the stream's number, and messages of native
    libraries would go into that file.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it takes the lowest free number


def _flush_stdout() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _drop_full_stdout() -> None:
    """Give stdout up if it takes no more; Python would complain when it flushes it at exit."""
    try:
        _flush_stdout()
    except OSError:
        sys.stdout = None


def _refuse(message: str, invocation: Invocation) -> int:
    """Show an error of the caller; return the exit code."""
    if invocation.debug:
        traceback.print_exc()
    say(f"error: {one_line(message)}")
    return 2


def _admit(error: Exception, invocation: Invocation) -> int:
    """Show a fault of this program; return the exit code."""
    if invocation.debug:
        traceback.print_exc()
    *_, frame = traceback.extract_tb(error.__traceback__)
    place = f"{Path(frame.filename).name}:{frame.lineno}"
    found = f"{type(error).__name__} at {place}: {str(error)[:150]}"
    say(
        one_line(
            f"error: a fault of fastvlm-onnx ({found}); report it, with the output of --debug."
        )
    )
    return 1


def _described(error: OSError) -> str:
    if error.filename is None and error.errno == errno.ENOSPC:
        return "stdout cannot be written (no space is left there)"
    reason = error.strerror or str(error)
    return reason if error.filename is None else f"{error.filename}: {reason}"


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
    if sys.platform != "win32":
        _require_address_space()


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
