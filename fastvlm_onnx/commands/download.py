"""`fastvlm-onnx download`."""

import shlex
from pathlib import Path

import click

from fastvlm_onnx.commands.optional_packages import optional_packages
from fastvlm_onnx.commands.progress import BYTES, progress_bar


@click.command()
@click.argument("size", metavar="0.5b|1.5b|7b")
@click.option("--stage", default=3, show_default=True, help="Of Apple's training: 2 or 3.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to make.")
@click.option("--base-url", hidden=True)
def download(size: str, stage: int, output: Path | None, base_url: str | None) -> None:
    """Download one of Apple's checkpoints, for research only.

    A download that was cut goes on where it stopped when the command is given again.
    """
    with optional_packages("downloading", "export"):
        from fastvlm_onnx.export.sources.apple_zoo import (
            APPLE_BASE_URL,
            checkpoint_name,
            download_checkpoint,
            is_whole_checkpoint,
        )
    name = checkpoint_name(size, stage)
    folder = output or Path(name)
    if is_whole_checkpoint(folder):
        click.echo(f"{folder} is there already and whole", err=True)
    else:
        with progress_bar("download", BYTES) as progress:
            download_checkpoint(
                size, stage, folder, base_url=base_url or APPLE_BASE_URL, progress=progress
            )
        click.echo(f"wrote {folder}", err=True)
    click.echo(f"next: fastvlm-onnx export {shlex.quote(str(folder))}", err=True)
