"""`fastvlm-onnx export`."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from fastvlm_onnx.agreement import (
    Agreement,
    VariantAgreement,
    first_choice_lines,
    summary_table,
)
from fastvlm_onnx.commands.download import with_license_notice
from fastvlm_onnx.commands.load_options import list_option, parse_numbers
from fastvlm_onnx.commands.progress import BYTES, progress_bar
from fastvlm_onnx.commands.verify import exit_if_outside, import_verify_package
from fastvlm_onnx.console import say
from fastvlm_onnx.errors import InputError
from fastvlm_onnx.optional_packages import optional_packages
from fastvlm_onnx.user_data import remember_export
from fastvlm_onnx.variants import (
    LAYOUTS,
    OPERATOR_SETS,
    QDQ_TARGET,
    TARGETS,
    TRANSFORMERS_JS_LAYOUT,
    VARIANTS,
    WEB_PAGE_LAYOUT,
    takes_qdq,
    variants_for_target,
)

# The value of --calibrate without a folder; no folder can have this name.
BUILT_IN_SET = ":built-in:"
VARIANT_LINES = "\n".join(f"  {spec.name:<11}{spec.description}" for spec in VARIANTS.values())


@click.command(epilog=f"\b\nVariants for --precision:\n{VARIANT_LINES}")
@click.argument("checkpoint", default="demo")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to make.")
@list_option(
    "--precision", help="Variants, with commas.  [default: fp32; web with --layout web-page]"
)
@click.option(
    "--target",
    type=click.Choice((*TARGETS, QDQ_TARGET)),
    help="The variants for a provider, or for browsers (web); openvino adds a graph to variants "
    "with int8 vision.",
)
@click.option(
    "--layout",
    type=click.Choice(LAYOUTS),
    help="The runtime that is to open the folder: genai adds the files of onnxruntime-genai, "
    "web-page a page that answers in a browser; transformers-js writes a folder of another form.",
)
@click.option(
    "--node-modules",
    type=click.Path(path_type=Path),
    help="A folder that has onnxruntime-web and @huggingface/tokenizers for --layout web-page; "
    "npm installs them otherwise.",
)
@list_option("--image-size", help="Pixels, with commas; the first is the default.")
@click.option(
    "--operators",
    type=click.Choice(OPERATOR_SETS),
    default="microsoft",
    show_default=True,
    help="Operators of the graphs: ONNX Runtime's fused operators in the decoder, or those of "
    "ONNX's opset 17 alone, for other engines.",
)
@click.option("--base", help="The checkpoint under CHECKPOINT, if that is a LoRA adapter.")
@click.option("--allow-nonfinite", is_flag=True, help="Export NaN and infinite weights too.")
@click.option("--overwrite", is_flag=True, help="Replace an existing package.")
@click.option("--add", is_flag=True, help="Add to an existing package, and keep its variants.")
@click.option(
    "--calibrate",
    is_flag=False,
    flag_value=BUILT_IN_SET,
    metavar="[FOLDER]",
    help="Quantise int4 and int8 decoders, and find the ranges for --target openvino, on texts and "
    "images: FOLDER's, or built-in ones.",
)
@click.option(
    "--split-decoder",
    is_flag=True,
    help="Let int4 answer sooner on the CPU, for an int4 copy of lm_head. fast does always.",
)
@click.option(
    "--golden/--no-golden",
    default=True,
    help="Run the variants for the values of golden.json.  [default: golden]",
)
@click.option("--verify", is_flag=True, help="Measure the package, as `fastvlm-onnx verify` does.")
def export(
    checkpoint: str,
    output: Path | None,
    precision: str | None,
    target: str | None,
    layout: str | None,
    node_modules: Path | None,
    image_size: str | None,
    operators: str,
    base: str | None,
    allow_nonfinite: bool,
    overwrite: bool,
    add: bool,
    calibrate: str | None,
    split_decoder: bool,
    golden: bool,
    verify: bool,
) -> None:
    """Export CHECKPOINT to ONNX graphs.

    CHECKPOINT is a folder or zip in Apple's or transformers' layout, a LoRA adapter over --base, a
    Hugging Face id such as apple/FastVLM-0.5B, `0.5b`, `1.5b` or `7b` for Apple's own, or `demo`
    for the built-in model.
    """
    folder = output or Path(f"{Path(checkpoint).resolve().name.removesuffix('.zip')}-onnx")
    sizes = None if image_size is None else parse_numbers(image_size, "--image-size")
    if layout == TRANSFORMERS_JS_LAYOUT:
        _refuse(
            {
                "--add": add,
                "--calibrate": calibrate,
                "--node-modules": node_modules,
                "--operators": operators != OPERATOR_SETS[0],
                "--overwrite": overwrite,
                "--split-decoder": split_decoder,
                "--target": target,
                "--verify": verify,
                "several --image-size": sizes is not None and len(sizes) > 1,
            }
        )
        _export_transformers_js(
            checkpoint,
            folder,
            precisions=_precisions(precision, None, False, layout),
            image_size=sizes[0] if sizes else None,
            base=base,
            allow_nonfinite=allow_nonfinite,
        )
        say(f"wrote {folder}")
        return
    measured = export_with_progress(
        checkpoint,
        folder,
        verify,
        precisions=_precisions(precision, target, add, layout),
        image_sizes=sizes,
        operators=operators,
        base=base,
        allow_nonfinite=allow_nonfinite,
        overwrite=overwrite,
        add=add,
        calibrate=calibrate == BUILT_IN_SET or calibrate or False,
        split_decoder=split_decoder,
        target=target if target == QDQ_TARGET else None,
        layout=layout,
        node_modules=node_modules,
        golden=golden,
    )
    say(f"wrote {folder}")
    if verify:
        say(f"{summary_table(measured)}\n\n{first_choice_lines(measured)}")
    exit_if_outside(Agreement(measured))
    remember_export(folder.absolute())


def _refuse(given: Mapping[str, object]) -> None:
    """Refuse options that only packages have."""
    if found := [option for option, value in given.items() if value]:
        raise InputError(
            f"--layout {TRANSFORMERS_JS_LAYOUT} is given with {', '.join(found)}, which only "
            "packages have; leave out either."
        )


def _export_transformers_js(checkpoint: str, folder: Path, **options: Any) -> None:
    """Export with a progress bar; for the options see `export_transformers_js`."""
    with optional_packages("exporting", "export"):
        from fastvlm_onnx.export.layouts.transformers_js import export_transformers_js
    with progress_bar("export", BYTES) as progress:
        export_transformers_js(
            checkpoint, folder, progress=with_license_notice(progress), **options
        )


def export_with_progress(
    checkpoint: str, folder: Path, verify: bool = False, **options: Any
) -> dict[str, VariantAgreement]:
    """Export with a progress bar, and return the measurements.

    Args:
        checkpoint: see `export_package`.
        folder: the folder to make.
        verify: measure the package.
        options: see `export_package`.

    Raises:
        InputError: packages that exporting or verifying needs are not installed.
    """
    with optional_packages("exporting", "export"):
        from fastvlm_onnx.export.pipeline import export_package
    verify_package = import_verify_package() if verify else None
    with ExitStack() as stack:
        progress = stack.enter_context(progress_bar("export", BYTES))

        def measure(folder: Path, opened: Any) -> Agreement:
            stack.close()  # the export's bar is done
            assert verify_package is not None
            with progress_bar("verify", " steps") as verifying:
                return verify_package(folder, opened, progress=verifying)

        manifest = export_package(
            checkpoint,
            folder,
            progress=with_license_notice(progress),
            verify=measure if verify else None,
            **options,
        )
    return manifest.measured


def _precisions(
    precision: str | None, target: str | None, add: bool, layout: str | None
) -> list[str]:
    """Return the named variants and the target's; without any, the default of a new package.

    The default is `web` for a web page, and fp32 otherwise.

    The target openvino adds a graph to variants. A new package has `fast` for it, unless a named
    variant takes the graph.
    """
    named = [] if precision is None else precision.split(",")
    if target == QDQ_TARGET and not add and not any(takes_qdq(n) for n in named if n in VARIANTS):
        named.append("fast")
    default = "web" if layout == WEB_PAGE_LAYOUT else "fp32"
    return [*named, *variants_for_target(target or "")] or ([] if add else [default])
