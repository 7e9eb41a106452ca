"""The commands. Each imports its side only when it runs, so `--help` costs nothing.

Answers go to stdout and nothing else does. Exit codes: 0 done, 1 our fault, 2 the caller's,
3 some pictures of many could not be read, 130 interrupted.
"""

import logging
import sys
import traceback
import warnings

import click

import fastvlm_onnx
from fastvlm_onnx.commands.bench import bench
from fastvlm_onnx.commands.caption import caption
from fastvlm_onnx.commands.chat import chat
from fastvlm_onnx.commands.demo import demo
from fastvlm_onnx.commands.doctor import doctor
from fastvlm_onnx.commands.download import download
from fastvlm_onnx.commands.export import export
from fastvlm_onnx.commands.generate import generate
from fastvlm_onnx.commands.inspect import inspect
from fastvlm_onnx.commands.verify import verify
from fastvlm_onnx.errors import FastVLMError
from fastvlm_onnx.telemetry import disable_telemetry


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `fastvlm-onnx`; `arguments` are the process's own when None."""
    # Every package that a command imports may import ONNX Runtime first.
    disable_telemetry()
    # What Pillow warns of, a very large picture, is either read or refused in our own words.
    warnings.simplefilter("ignore")
    debug = "--debug" in sys.argv
    try:
        cli(arguments, prog_name="fastvlm-onnx", standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        click.echo(f"error: {error.format_message()} {_where_to_read(error)}", err=True)
        sys.exit(2)
    except FastVLMError as error:
        if debug:
            traceback.print_exc()
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our stdout left; closing it again at exit must not complain.
        sys.stdout = None
        sys.exit(1)


def _where_to_read(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"See `{context.command_path if context else 'fastvlm-onnx'} --help`."


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(fastvlm_onnx.__version__, message="%(version)s")
@click.option(
    "--debug", is_flag=True, expose_value=False, help="Show a traceback with every error."
)
def cli() -> None:
    """Apple's FastVLM in ONNX Runtime: export a checkpoint, ask about pictures."""
    # What the library warns of; it says nothing by itself.
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    logging.getLogger("fastvlm_onnx").addHandler(handler)


for command in (download, export, verify, generate, chat, caption, inspect, bench, doctor, demo):
    cli.add_command(command)
