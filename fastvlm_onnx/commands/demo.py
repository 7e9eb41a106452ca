"""`fastvlm-onnx demo`."""

import json
from importlib import resources
from pathlib import Path

import click

import fastvlm_onnx
from fastvlm_onnx.commands.default_package import export_demo_once
from fastvlm_onnx.user_data import demo_package


@click.command()
@click.option("--model", type=click.Path(path_type=Path), help="Another exported folder.")
def demo(model: Path | None) -> None:
    """Ask the built-in model about its sample pictures."""
    folder = model or demo_package(fastvlm_onnx.__version__)
    if model is None:
        export_demo_once(folder)
    loaded = fastvlm_onnx.load(folder)
    samples = resources.files("fastvlm_onnx") / "demo" / "pictures"
    questions = json.loads((samples / "questions.json").read_text("utf-8"))
    for picture, answers in questions.items():
        click.echo(picture)
        content = (samples / picture).read_bytes()
        for prompt in answers:
            click.echo(f"  {prompt}  {loaded.generate(content, prompt).text}")
