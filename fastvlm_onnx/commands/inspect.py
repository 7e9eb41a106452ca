"""`fastvlm-onnx inspect`."""

import json
from dataclasses import asdict
from pathlib import Path

import click


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="The whole manifest as one JSON object.")
def inspect(folder: Path, as_json: bool) -> None:
    """Show the contents of the package DIR, after a check of its files' hashes.

    A manifest of format 1 is shown with the keys of format 2, but for its format_version.
    """
    from fastvlm_onnx.agreement import machine_lines, summary_table
    from fastvlm_onnx.package import read_manifest
    from fastvlm_onnx.package_files import check_files

    manifest = read_manifest(folder)
    check_files(folder, list(manifest.files), manifest)
    if as_json:
        click.echo(json.dumps(asdict(manifest), ensure_ascii=False))
        return
    source, decoder = manifest.source, manifest.decoder
    total = sum(entry.bytes for entry in manifest.files.values())
    click.echo(
        f"{source.name}: {source.parameters / 1e6:,.1f} million parameters, by {source.exporter}; "
        f"{total / 1e6:,.1f} MB in {len(manifest.files)} files, "
        f"manifest format {manifest.format_version}\n"
        f"decoder: {decoder.num_hidden_layers} layers of {decoder.hidden_size}, "
        f"{decoder.vocab_size:,} tokens, a context of {decoder.context_length:,}"
    )
    for name, variant in manifest.variants.items():
        sizes = list(variant.vision_encoder)
        needed = {f for size in sizes for f in manifest.files_of(name, int(size))}
        megabytes = sum(manifest.files[file].bytes for file in needed) / 1e6
        click.echo(
            f"{name}: {megabytes:,.1f} MB, {', '.join(sizes)} pixels; {variant.decoder}; "
            f"ONNX Runtime {manifest.least_onnxruntime(variant)} or later"
        )
    if (found := manifest.calibration) is not None:
        click.echo(
            f"calibrated: {found.method} on {found.texts} texts and {found.images} images "
            f"({found.tokens:,} tokens, set {found.set}); {', '.join(found.graphs)}"
        )
    if manifest.measured:
        click.echo(f"\n{summary_table(manifest.measured)}")
        if machines := machine_lines(manifest.measured):
            click.echo(machines)
