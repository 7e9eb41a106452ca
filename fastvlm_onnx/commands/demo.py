"""`fastvlm-onnx demo`."""

import json

import click

import fastvlm_onnx
from fastvlm_onnx.commands.default_package import export_demo_once
from fastvlm_onnx.samples import SAMPLE_PICTURES, SAMPLE_QUESTIONS
from fastvlm_onnx.user_data import demo_package


@click.command()
@click.option("--model", help="Another exported folder, or the hub id of a package.")
def demo(model: str | None) -> None:
    """Ask the built-in model about its sample pictures."""
    from fastvlm_onnx.runtime.hub import package_folder

    if model is None:
        folder = demo_package(fastvlm_onnx.__version__)
        export_demo_once(folder)
    else:
        folder = package_folder(model, shows_progress=True)
    loaded = fastvlm_onnx.load(folder)
    questions = json.loads(SAMPLE_QUESTIONS.read_text("utf-8"))
    for picture, answers in questions.items():
        click.echo(picture)
        for prompt in answers:
            click.echo(f"  {prompt}  {loaded.generate(SAMPLE_PICTURES / picture, prompt).text}")
