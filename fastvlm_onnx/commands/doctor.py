"""`fastvlm-onnx doctor`."""

import platform
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fastvlm_onnx.commands.load_options import LoadOptions, load_options
from fastvlm_onnx.errors import FastVLMError, InputError
from fastvlm_onnx.optional_packages import optional_packages
from fastvlm_onnx.samples import SAMPLE_PICTURE

if TYPE_CHECKING:
    from fastvlm_onnx.runtime.model import FastVLM

SAMPLE_PROMPT = "Describe the image."
SAMPLE_NEW_TOKENS = 8
INT8_WEIGHTS = {
    "int8": "as they are, because this processor's int8 products are exact",
    "uint8": "rewritten as uint8, because this processor saturates int8 products",
}


@click.command()
@click.argument("folder", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
@load_options
@click.option(
    "--static",
    type=click.Choice(["coreml"]),
    help="Check each node of DIR's vision graphs against this provider's operators.",
)
def doctor(
    folder: Path | None,
    options: LoadOptions,
    static: str | None,
) -> None:
    """Show this machine, the providers of each graph, and possible improvements.

    With DIR, its graphs are opened and one picture is asked about. The exit code is 1 if a
    requested provider or package does not work.
    """
    if static:
        if folder is None:
            raise InputError("--static needs a package; give its folder.")
        sys.exit(0 if _static_coreml(folder) else 1)
    from fastvlm_onnx.runtime.ort.provider_selection import parse_providers

    try:
        _print_machine(options.threads)
        options.register_libraries()
        _print_providers()
        if folder is None:
            parse_providers(options.providers, options.provider_options)
        else:
            _print_package(folder, options)
    except FastVLMError as error:
        _show("problem", str(error))
        sys.exit(1)


def _show(heading: str, text: str) -> None:
    click.echo(f"{heading:<18}{text}")


def _print_machine(threads: int | None) -> None:
    from fastvlm_onnx.runtime.ort.hardware import (
        cgroup_cores,
        cores,
        memory_bytes,
        physical_cores,
        processor,
    )

    _show("system", f"{platform.platform()}, Python {platform.python_version()}")
    limit = cgroup_cores()
    used = threads or physical_cores()
    _show(
        "processor",
        f"{processor()}, {cores()} logical cores for this process"
        + (f", {limit} by its cgroup" if limit else "")
        + f"; {used or 'ONNX Runtime chooses how many'} threads for each graph",
    )
    total, free = memory_bytes()
    if total and free:
        _show("memory", f"{total / 1e9:.1f} GB, of which {free / 1e9:.1f} GB are free")


def _print_providers() -> None:
    from fastvlm_onnx.runtime.ort.advice import advice
    from fastvlm_onnx.runtime.ort.installed import (
        described_providers,
        installed_providers,
        plugin_problems,
    )
    from fastvlm_onnx.runtime.ort.provider_selection import AUTO_RULES, usable_providers
    from fastvlm_onnx.runtime.ort.providers import PROVIDERS, import_onnxruntime
    from fastvlm_onnx.runtime.ort.saturation import int8_products_saturate

    ort = import_onnxruntime()
    wheels = sorted(
        f"{found.metadata['Name']} {found.version}"
        for found in distributions()
        if (found.metadata["Name"] or "").lower().startswith("onnxruntime")
    )
    _show("ONNX Runtime", f"{ort.__version__} ({', '.join(wheels) or 'no wheel'})")
    if len({wheel.split()[0] for wheel in wheels if "-ep-" not in wheel}) > 1:
        _show("problem", "these wheels share one folder; uninstall all of them, then install one.")
    installed, usable = installed_providers(), usable_providers()
    _show("providers", ", ".join(described_providers()))
    problems = plugin_problems()
    for problem in problems.values():
        _show("problem", problem)
    saturate = int8_products_saturate()
    _show("int8 products", "saturate: int8 weights are rewritten as uint8" if saturate else "exact")
    click.echo("auto takes, for each graph, the first provider that is installed:")
    for rule in AUTO_RULES:
        provider = PROVIDERS[rule.provider]
        state = "installed" if provider.ep in usable else f"not installed: {provider.install}"
        if provider.ep in installed and provider.ep not in usable:
            state = "installed, but no NVIDIA card is found"
        if provider.ep in problems:
            state = "its plugin cannot be used (see above)"
        click.echo(
            f"  {rule.provider:<9}{', '.join(rule.graphs)} of "
            f"{', '.join(rule.variants) or 'any variant'}: {rule.reason}\n"
            f"{'':<11}{state}"
        )
    row = advice(usable)
    _show("to take", f"{row.take}: {row.reason} ({row.machine})")


def _print_package(folder: Path, options: LoadOptions) -> None:
    model = options.load(folder, record_placement=True)
    _show("package", f"{folder}: {', '.join(model.manifest.variants)}; opened {model.precision}")
    for graph, session in model.sessions.items():
        _show(f"  {graph}", f"{session.path.name}")
        if session.choice.reason:
            click.echo(f"{'':<18}{session.choice.name}: {session.choice.reason}")
        if session.is_stored:
            click.echo(f"{'':<18}compiled before; `fastvlm-onnx cache` shows where")
        if session.int8_weights:
            click.echo(f"{'':<18}int8 weights: {INT8_WEIGHTS[session.int8_weights]}")
        if session.placement is None:
            click.echo(f"{'':<18}this ONNX Runtime does not tell where the nodes run")
            continue
        total = sum(sum(operators.values()) for operators in session.placement.values())
        for ep, operators in session.placement.items():
            count = sum(operators.values())
            left = ""
            if ep != session.choice.ep:
                left = ": " + ", ".join(f"{n} {name}" for name, n in operators.most_common())
            click.echo(f"{'':<18}{ep}: {count} of {total} nodes{left}")
    _print_answer(model)
    for line in _advice(folder, model):
        _show("to change", line)


def _print_answer(model: "FastVLM") -> None:
    model.generate(SAMPLE_PICTURE, SAMPLE_PROMPT, max_new_tokens=SAMPLE_NEW_TOKENS)
    answer = model.generate(SAMPLE_PICTURE, SAMPLE_PROMPT, max_new_tokens=SAMPLE_NEW_TOKENS)
    timings = answer.timings
    _show("answer", answer.text)
    _show(
        "seconds",
        f"load {timings.load:.2f}, vision {timings.vision:.3f}, prefill {timings.prefill:.3f}, "
        f"first token {timings.first_token:.3f}; {timings.tokens_per_second:.1f} tokens a second",
    )


def _advice(folder: Path, model: "FastVLM") -> list[str]:
    from fastvlm_onnx.runtime.loading import add_command
    from fastvlm_onnx.runtime.ort.hardware import cores
    from fastvlm_onnx.runtime.ort.installed import installed_providers
    from fastvlm_onnx.runtime.ort.providers import CPU, PROVIDERS
    from fastvlm_onnx.variants import variants_for_provider

    lines = []
    variants = model.manifest.variants
    command = add_command(model.manifest, folder)
    installed = installed_providers()
    for name, provider in PROVIDERS.items():
        if (
            name not in ("cpu", "openvino")  # the reason of `auto` says what OpenVINO lacks
            and provider.ep in installed
            and not set(variants_for_provider(name)) & set(variants)
        ):
            lines.append(
                f"{name} is installed, and the package has no variant for it: "
                f"{command} --precision {variants_for_provider(name)[0]}"
            )
    is_on_cpu = all(session.choice.ep == CPU for session in model.sessions.values())
    if is_on_cpu and not {"fast", "int8", "int4"} & set(variants):
        lines.append(f"a faster variant on the CPU: {command} --precision fast")
    if model.threads and model.threads > cores():
        lines.append(f"--threads {model.threads} is more than the {cores()} cores of this machine")
    return lines


def _static_coreml(folder: Path) -> bool:
    """Print the share of nodes that CoreML takes; return whether it takes its graphs whole."""
    with optional_packages("checking", "export"):
        from fastvlm_onnx.export.verification.coreml_check import check_package
    from fastvlm_onnx.package import read_manifest
    from fastvlm_onnx.variants import variants_for_target

    shares = check_package(folder)
    coreml = {
        file
        for name, variant in read_manifest(folder).variants.items()
        if name in variants_for_target("coreml")
        for file in variant.graph_files()
    }
    meant = [share for share in shares if share.file in coreml]
    for share in shares:
        click.echo(f"{share.file}: {share.taken} of {share.nodes} nodes")
        for reason, count in share.refused.items() if share in meant or not meant else ():
            click.echo(f"  {count} {reason}")
    if not meant:
        click.echo("no graph is for CoreML; `fastvlm-onnx export --target coreml` makes them")
    return bool(meant) and all(share.taken == share.nodes for share in meant)
