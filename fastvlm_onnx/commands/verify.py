"""`fastvlm-onnx verify`."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import click

from fastvlm_onnx.agreement import Agreement, agreement_table
from fastvlm_onnx.commands.download import with_license_notice
from fastvlm_onnx.commands.load_options import list_option
from fastvlm_onnx.commands.progress import progress_bar
from fastvlm_onnx.console import say
from fastvlm_onnx.optional_packages import optional_packages
from fastvlm_onnx.progress import no_progress


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("checkpoint")
@click.option("--base", help="The checkpoint under CHECKPOINT, if that is a LoRA adapter.")
@click.option("--picture", "pictures", multiple=True, help="May be repeated.")
@click.option("--prompt", "prompts", multiple=True, help="May be repeated; asked of each picture.")
@click.option("--steps", default=32, show_default=True, help="Tokens of each answer, at most.")
@list_option("--precision", help="Variants, with commas; all that the CPU can run by default.")
@click.option("--image-size", type=int, help="One the package was exported for.")
@click.option("--threads", type=int, help="One per physical core by default.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of the table.")
def verify(
    folder: Path,
    checkpoint: str,
    base: str | None,
    pictures: tuple[str, ...],
    prompts: tuple[str, ...],
    steps: int,
    precision: str | None,
    image_size: int | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Compare the package DIR with PyTorch running CHECKPOINT, stage by stage.

    Pictures and prompts are the built-in samples by default. The exit code is 1 if a figure is
    outside its variant's tolerance, which the table states.

    PyTorch holds the whole model in float32: four bytes a parameter, and twice as many while it
    loads. The 0.5B takes 6 GB, the 7B 62 GB.
    """
    verify_package = import_verify_package()
    with progress_bar("verify", " steps") as progress:
        agreement = verify_package(
            folder,
            checkpoint,
            base=base,
            images=pictures,
            prompts=prompts,
            steps=steps,
            precisions=precision.split(",") if precision else None,
            image_size=image_size,
            threads=threads,
            progress=progress,
            download_progress=with_license_notice(no_progress),
        )
    found = {"outside_tolerance": agreement.outside, **asdict(agreement)}
    click.echo(
        json.dumps(found, ensure_ascii=False) if as_json else agreement_table(agreement.variants)
    )
    exit_if_outside(agreement)


def import_verify_package() -> Callable[..., Agreement]:
    """Import `verify_package`, which needs PyTorch.

    Raises:
        InputError: packages that it needs are not installed.
    """
    with optional_packages("verifying", "verify"):
        from fastvlm_onnx.export.verification.verify import verify_package
    return verify_package


def exit_if_outside(agreement: Agreement) -> None:
    """Exit with 1 if a figure is outside its tolerance."""
    if agreement.outside:
        say(f"outside tolerance: {'; '.join(agreement.outside)}")
        sys.exit(1)
