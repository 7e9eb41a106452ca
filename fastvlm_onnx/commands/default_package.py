"""Which package a command opens when none was named."""

from pathlib import Path

import click

import fastvlm_onnx
from fastvlm_onnx.commands.export import export_with_progress
from fastvlm_onnx.user_data import default_model, demo_package


def model_folder() -> Path:
    chosen = default_model()
    folder = chosen.folder or demo_package(fastvlm_onnx.__version__)
    click.echo(f"model: {folder} ({chosen.reason})", err=True)
    if chosen.folder is None:
        export_demo_once(folder)
    return folder


def export_demo_once(folder: Path) -> None:
    if not folder.is_dir():
        export_with_progress("demo", folder)
