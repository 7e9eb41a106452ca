"""`fastvlm-onnx inspect`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fastvlm_onnx.errors import InputError, PackageError
from fastvlm_onnx.names import GOLDEN_FILE

if TYPE_CHECKING:
    from fastvlm_onnx.package import Manifest


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="The whole manifest as one JSON object.")
@click.option("--golden", is_flag=True, help="Run golden.json of the package, and compare values.")
def inspect(folder: Path, as_json: bool, golden: bool) -> None:
    """Show the contents of the package DIR, after a check of its files' hashes.

    A manifest of format 1 is shown with the keys of format 2, but for its format_version. With
    --golden, each variant answers the questions of the package's golden.json, and the exit code is
    2 if a value differs by more than its tolerance.
    """
    from fastvlm_onnx.agreement import machine_lines, summary_table
    from fastvlm_onnx.package import read_manifest
    from fastvlm_onnx.package_files import check_files

    if as_json and golden:
        raise InputError("found both --json and --golden, expected one of them.")
    manifest = read_manifest(folder)
    check_files(folder, list(manifest.files), manifest)
    if golden:
        _compare_golden(folder, manifest)
        return
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


def _compare_golden(folder: Path, manifest: "Manifest") -> None:
    """Print how far this runtime is from the package's golden.json.

    Raises:
        PackageError: the package has no golden.json, or a value differs by more than its tolerance.
    """
    from fastvlm_onnx.golden import read_golden
    from fastvlm_onnx.runtime.golden.compare import check_package

    if GOLDEN_FILE not in manifest.files:
        raise PackageError(
            f"{folder}: has no {GOLDEN_FILE}, which packages of {manifest.source.exporter} lack or "
            "this one has lost; export the package again."
        )
    path = folder / GOLDEN_FILE
    golden = read_golden(path)
    found = check_package(folder, manifest, golden)
    if found.differences:
        first, *more = found.differences
        further = f" (and {len(more)} further differences)" if more else ""
        raise PackageError(
            f"{path}: {first}{further}; this runtime, its libraries or the processor compute "
            "other values than the exporter did: compare the installed versions, or export the "
            "package again."
        )
    click.echo(
        f"equal: {len(golden.pictures)} pictures decoded and resized, "
        f"{len(golden.texts)} texts and {len(golden.conversations)} conversations as token ids"
    )
    for name, variant in golden.variants.items():
        largest, allowed = found.largest[name], asdict(variant.tolerance)
        differences = " and ".join(
            f"{key} within {largest[key]:.1e} (at most {allowed[key]:g})" for key in largest
        )
        click.echo(f"{name}: {differences} standard deviations, {found.tokens[name]} tokens equal")
    for name, reason in golden.missing.items():
        click.echo(f"no values of {name}: {reason}")
