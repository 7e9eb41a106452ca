"""`optimum-cli export fastvlm-onnx -m CHECKPOINT OUTPUT`: the `export` command in optimum's house.

Its options are those of `fastvlm-onnx export`, read off that command, which then runs.
"""

from argparse import ArgumentParser

import click
from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from fastvlm_onnx.cli import main
from fastvlm_onnx.commands.export import export

HELP = "Export Apple's FastVLM to ONNX graphs for ONNX Runtime, without PyTorch."


class FastVLMOnnxExportCommand(BaseOptimumCLICommand):  # type: ignore[misc]
    """optimum's side: its argument parser in, our command line out."""

    COMMAND = CommandInfo(name="fastvlm-onnx", help=HELP)

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        parser.add_argument("-m", "--model", required=True, help="As CHECKPOINT of fastvlm-onnx.")
        parser.add_argument("output", help="Folder to make.")
        for option in _options():
            action = "store_true" if option.is_flag else "store"
            parser.add_argument(*option.opts, dest=option.name, action=action, help=option.help)

    def run(self) -> None:
        arguments = ["export", "-o", self.args.output]
        for option in _options():
            value = getattr(self.args, option.name or "")
            if option.is_flag:
                arguments += option.opts[:1] if value else []
            elif value is not None:  # an empty one is refused as on our own command line
                arguments += [option.opts[0], value]
        main([*arguments, "--", self.args.model])


def _options() -> list[click.Option]:
    """The options of `fastvlm-onnx export`; the output is a positional argument here."""
    return [p for p in export.params if isinstance(p, click.Option) and p.name != "output"]
