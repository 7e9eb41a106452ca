"""`optimum-cli export fastvlm-onnx -m CHECKPOINT OUTPUT`: the `export` command for optimum.

The options are read from `fastvlm-onnx export`, which then runs.
"""

from argparse import ArgumentParser
from typing import Any

import click
from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from fastvlm_onnx.cli import main
from fastvlm_onnx.commands.export import export

DEBUG = "--debug"
COMMAND_HELP = "Export Apple's FastVLM to ONNX graphs for ONNX Runtime, without PyTorch."


class FastVLMOnnxExportCommand(BaseOptimumCLICommand):  # type: ignore[misc]
    """The command as optimum sees it: optimum's parser in, the command line of `export` out."""

    COMMAND = CommandInfo(name="fastvlm-onnx", help=COMMAND_HELP)

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        parser.add_argument(
            "-m", "--model", required=True, help="CHECKPOINT, as `fastvlm-onnx export` takes it."
        )
        parser.add_argument("output", help="Folder to make.")
        parser.add_argument(DEBUG, action="store_true", help="Show a traceback with every error.")
        for option in _options():
            if option.is_flag:
                kind: dict[str, Any] = {"action": "store_true"}
            elif isinstance(option.flag_value, str):
                kind = {"nargs": "?", "const": option.flag_value}
            elif option.multiple:
                kind = {"action": "append"}
            else:
                kind = {}
            parser.add_argument(*option.opts, dest=option.name, help=option.help, **kind)

    def run(self) -> None:
        arguments = [DEBUG] if self.args.debug else []
        arguments += ["export", "-o", self.args.output]
        for option in _options():
            value = getattr(self.args, option.name or "")
            if option.is_flag:
                arguments += option.opts[:1] if value else []
            elif value is not None:  # `export` itself refuses an empty value
                for one in value if option.multiple else [value]:
                    arguments += [option.opts[0], one]
        main([*arguments, "--", self.args.model])


def _options() -> list[click.Option]:
    """The options of `fastvlm-onnx export`, without the output, which has its own place here."""
    return [p for p in export.params if isinstance(p, click.Option) and p.name != "output"]
