"""`fastvlm-onnx demo`."""

import json
from importlib import resources

import click

import fastvlm_onnx
from fastvlm_onnx.commands.default_package import export_demo_once
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
    samples = resources.files("fastvlm_onnx") / "demo" / "pictures"
    questions = json.loads((samples / "questions.json").read_text("utf-8"))
    for picture, answers in questions.items():
        click.echo(picture)
        content = (samples / picture).read_bytes()
        for prompt in answers:
            click.echo(f"  {prompt}  {loaded.generate(content, prompt).text}")
