"""Installs as optimum/commands/register/: makes `optimum-cli export fastvlm-onnx` known to optimum.

optimum imports every file of that folder at each start, so this one stays light.
"""

from optimum.commands.export.base import ExportCommand

from fastvlm_onnx.optimum_command import FastVLMOnnxExportCommand

REGISTER_COMMANDS = [(FastVLMOnnxExportCommand, ExportCommand)]
