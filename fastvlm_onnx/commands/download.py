"""`fastvlm-onnx download`."""

import shlex
from pathlib import Path
from typing import Final

import click

from fastvlm_onnx.commands.progress import BYTES, progress_bar
from fastvlm_onnx.console import say
from fastvlm_onnx.optional_packages import optional_packages
from fastvlm_onnx.progress import Progress

LICENSE_NOTICE: Final = """\
Apple's FastVLM weights are licensed for non-commercial research only: no product, no service.
That holds for all that is made from them; read LICENSE_MODEL in github.com/apple/ml-fastvlm."""


@click.command()
@click.argument("size", metavar="0.5b|1.5b|7b")
@click.option("--stage", default=3, show_default=True, help="Stage of Apple's training: 2 or 3.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to make.")
@click.option("--base-url", hidden=True)
def download(size: str, stage: int, output: Path | None, base_url: str | None) -> None:
    """Download one of Apple's checkpoints, for research only.

    After an interruption, the same command continues the download.
    """
    with optional_packages("downloading", "export"):
        from fastvlm_onnx.export.checkpoint.reader import is_whole_checkpoint
        from fastvlm_onnx.export.sources.apple_zoo import (
            APPLE_BASE_URL,
            checkpoint_name,
            download_checkpoint,
        )
    name = checkpoint_name(size, stage)
    folder = output or Path(name)
    if is_whole_checkpoint(folder):
        say(f"{folder}: already holds the whole checkpoint")
    else:
        with progress_bar("download", BYTES) as progress:
            download_checkpoint(
                size,
                stage,
                folder,
                base_url=base_url or APPLE_BASE_URL,
                progress=with_license_notice(progress),
            )
        say(f"wrote {folder}")
    say(f"next: fastvlm-onnx export {shlex.quote(str(folder))}")


def with_license_notice(progress: Progress) -> Progress:
    """Wrap a progress function so that the licence is named on stderr as a download begins.

    Only Apple's archives are downloaded in a stage of this name.
    """
    is_announced = False

    def update(stage: str, done_bytes: int, total_bytes: int) -> None:
        nonlocal is_announced
        if stage == "download" and not is_announced:
            is_announced = True
            say(LICENSE_NOTICE)
        progress(stage, done_bytes, total_bytes)

    return update
