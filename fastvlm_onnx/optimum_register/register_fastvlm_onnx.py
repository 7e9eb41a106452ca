"""Installs into optimum/commands/register/, where optimum finds `export fastvlm-onnx`.

optimum imports every file of that folder at each start, so this file imports little.
"""

from optimum.commands.export.base import ExportCommand

from fastvlm_onnx.optimum_command import FastVLMOnnxExportCommand

REGISTER_COMMANDS = [(FastVLMOnnxExportCommand, ExportCommand)]
