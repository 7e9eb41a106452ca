"""export_package(): a checkpoint in, a folder of ONNX graphs out, top to bottom."""

import errno
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from fastvlm_onnx.agreement import Agreement, VariantAgreement
from fastvlm_onnx.arguments import checks_arguments
from fastvlm_onnx.errors import InputError, PackageError
from fastvlm_onnx.export.architecture.config import VISION_PATCH_SIZE
from fastvlm_onnx.export.calibration.activation_ranges import RangeCalibration
from fastvlm_onnx.export.calibration.calibration import Calibration
from fastvlm_onnx.export.calibration.calibration_set import built_in_set, read_set
from fastvlm_onnx.export.checkpoint.config_reader import check_image_size
from fastvlm_onnx.export.checkpoint.reader import Checkpoint
from fastvlm_onnx.export.disk.atomic_folder import check_destination, unfinished_folder
from fastvlm_onnx.export.disk.disk_space import check_disk_space
from fastvlm_onnx.export.layouts.genai import CONFIG_FILE as GENAI_CONFIG
from fastvlm_onnx.export.layouts.genai import (
    check_genai,
    with_genai_graphs,
    write_genai_configs,
)
from fastvlm_onnx.export.layouts.web_page import has_web_page, page_sources, write_web_page
from fastvlm_onnx.export.sources.open_checkpoint import open_checkpoint
from fastvlm_onnx.export.variants import (
    NOT_CALIBRATED,
    build_graphs,
    calibratable,
    calibrated_graphs,
    calibrated_precisions,
    check_qdq,
    check_variants,
    qdq_graphs,
    variants_to_split,
)
from fastvlm_onnx.export.writing.existing_package import ExistingPackage
from fastvlm_onnx.export.writing.graph_set import GraphSet
from fastvlm_onnx.export.writing.model_card import APPLE_NOTICE, write_card
from fastvlm_onnx.export.writing.package_writer import PackageWriter
from fastvlm_onnx.names import CARD_FILE, GOLDEN_FILE, LICENSE_FILE, TOKENIZER_FILE
from fastvlm_onnx.package import FORMAT_VERSION, DecoderFormat, ImageFormat, Manifest, Source
from fastvlm_onnx.package_files import describe_file
from fastvlm_onnx.progress import Progress, no_progress
from fastvlm_onnx.runtime.golden.record import record_golden
from fastvlm_onnx.variants import GENAI_LAYOUT, PACKAGE_LAYOUTS, QDQ_TARGET, WEB_PAGE_LAYOUT
from fastvlm_onnx.version import __version__

MEGABYTE: Final = 1_000_000

Verify = Callable[[Path, Checkpoint], Agreement]
"""Measures a package against the checkpoint that it was made from."""


@checks_arguments
def export_package(
    source: str | Path,
    destination: str | Path,
    *,
    precisions: Sequence[str] = ("fp32",),
    image_sizes: Sequence[int] | None = None,
    operators: str = "microsoft",
    base: str | Path | None = None,
    allow_nonfinite: bool = False,
    overwrite: bool = False,
    add: bool = False,
    calibrate: bool | str | Path = False,
    split_decoder: bool = False,
    target: str | None = None,
    layout: str | None = None,
    node_modules: str | Path | None = None,
    golden: bool = True,
    progress: Progress = no_progress,
    verify: Verify | None = None,
) -> Manifest:
    """Export a checkpoint as one folder that needs no PyTorch to run.

    Args:
        source: a checkpoint in any form that `open_checkpoint` knows.
        destination: the folder to make. It appears when it is whole.
        precisions: names of the variants to write, keys of `variants.VARIANTS`.
        image_sizes: sides of the square input in pixels, the default first; the checkpoint's own
            size when None.
        operators: "microsoft", ONNX Runtime's fused operators in the decoder; or "standard", ONNX's
            operators of opset 17 alone in all graphs, for other engines.
        base: the checkpoint that a LoRA adapter was trained on.
        allow_nonfinite: export NaN and infinity instead of refusing the checkpoint.
        overwrite: replace an existing package, once the new package is whole.
        add: keep the variants and image sizes of an existing package, its default size included.
        calibrate: quantise int4 and int8 decoders on the activations of texts and images: those of
            a folder, or the built-in set when True.
        split_decoder: export the decoder of `int4` in parts too. Greedy answers come sooner on the
            CPU, and the package has lm_head in int4 as well; `fast` is always exported so.
        target: "openvino" adds a vision encoder in QDQ form to the variants with int8 vision. The
            ranges of its activations are found on the images of `calibrate`, or on built-in ones.
        layout: "genai" adds the files that onnxruntime-genai needs, for the first variant that it
            can run. "web-page" adds a page that answers from the package in a browser. A package
            that has such files keeps them when it is added to.
        node_modules: a folder that has onnxruntime-web and @huggingface/tokenizers, for the page;
            npm installs them when None.
        golden: run the variants for the values of golden.json, where the CPU and the memory allow;
            the file holds pixels and token ids alone when False.
        progress: called with the stage, the bytes written so far and the bytes in all.
        verify: `verify_package` of verify.py. The manifest and the card state its measurements. A
            package outside its tolerance is kept, and the card says so.

    Raises:
        CheckpointError: the checkpoint cannot be read; nothing was written.
        UnsupportedError: the checkpoint's configuration, an image size, or a variant in these
            operators is not built.
        InputError: a variant, the target, the layout or the set of operators is unknown; both
            overwrite and add are set; there is nothing to add; the calibration set cannot be used;
            no variant needs the calibration set or takes the target's graph; the layout's runtime
            can run no variant; or no variant's decoder can be split.
        PackageError: the destination exists or cannot be written; or it cannot be added to, or
            was made of another checkpoint.
    """
    destination = Path(destination).absolute()

    # 1. Refuse everything that can be refused before a byte is written.
    if precisions is None:  # `verify_package` has a default for None
        raise InputError("precisions is None; expected names of variants.")
    check_variants(precisions, operators)
    if target not in (None, QDQ_TARGET):
        raise InputError(f"target is {target!r}, expected {QDQ_TARGET!r} or None.")
    if overwrite and add:
        raise InputError("found both --add and --overwrite, expected one of them.")
    check_destination(destination, overwrite or add)
    existing = None
    if add:
        existing = ExistingPackage(
            destination,
            precisions,
            image_sizes or (),
            operators,
            target,
            split_decoder=split_decoder,
        )
        precisions, image_sizes = existing.variants, existing.image_sizes
        existing.check_calibration(
            calibratable(existing.manifest.variants), is_calibrated=bool(calibrate)
        )
    if layout not in (None, *PACKAGE_LAYOUTS):
        raise InputError(
            f"layout is {layout!r}, expected {' or '.join(map(repr, PACKAGE_LAYOUTS))} or None."
        )
    if node_modules is not None and layout != WEB_PAGE_LAYOUT:
        raise InputError(f"found --node-modules; it belongs to --layout {WEB_PAGE_LAYOUT}.")
    has_page, has_genai = layout == WEB_PAGE_LAYOUT, layout == GENAI_LAYOUT
    if existing:
        has_page |= has_web_page(destination)
        has_genai |= GENAI_CONFIG in existing.manifest.files
    split = existing.split_variants if existing else []
    if split_decoder:
        split = variants_to_split(precisions)
    if target:
        check_qdq(precisions)
    genai_variant = check_genai(precisions) if has_genai else None
    calibration_set = None
    if calibrate:
        to_calibrate = calibrated_precisions(precisions)
        calibration_set = built_in_set() if calibrate is True else read_set(Path(calibrate))
    checkpoint = open_checkpoint(
        source, base=base, allow_nonfinite=allow_nonfinite, progress=progress
    )
    sizes = tuple(dict.fromkeys(image_sizes or (checkpoint.config.vision.image_size,)))
    for size in sizes:
        check_image_size(size)

    # 2. Declare the graphs; every tensor of the checkpoint is accounted for.
    calibration = None
    if calibration_set:
        calibration = Calibration(checkpoint, to_calibrate, calibration_set, sizes[0], destination)
    range_calibration = None
    if target:
        range_calibration = RangeCalibration(checkpoint, calibration_set, sizes[0])
    graph_set = build_graphs(
        checkpoint,
        tuple(dict.fromkeys(precisions)),
        sizes,
        operators,
        calibration.weights if calibration else NOT_CALIBRATED,
        range_calibration.ranges if range_calibration else None,
        split=split,
    )
    if genai_variant:
        graph_set = with_genai_graphs(graph_set, checkpoint, genai_variant, sizes[0])
    writer = PackageWriter(graph_set, progress)
    needed_bytes = writer.total_bytes + (calibration.size_bytes if calibration else 0)
    check_disk_space(destination.parent, needed_bytes, "package")

    with ExitStack() as stack:
        page = None
        if has_page:
            page = stack.enter_context(page_sources(Path(node_modules) if node_modules else None))
        folder = stack.enter_context(unfinished_folder(destination))
        # 3. Calibrate: each product is quantised on the activations of those before it.
        record, ranges_record = None, None
        if calibration:
            with _disk_errors(destination, folder, needed_bytes):
                record = calibration.run(progress)
            record = replace(record, graphs=calibrated_graphs(graph_set))
        if range_calibration:
            with _disk_errors(destination, folder, needed_bytes):
                ranges_record = range_calibration.run(progress)
            ranges_record = replace(ranges_record, graphs=qdq_graphs(graph_set))

        # 4. Write: weights stream from the checkpoint's files, one tensor in memory at a time.
        with _disk_errors(destination, folder, writer.total_bytes):
            graphs = writer.write(folder)
            (folder / TOKENIZER_FILE).write_text(checkpoint.tokenizer, encoding="utf-8")
            if genai_variant:
                decoder = graph_set.variants[genai_variant].decoder
                write_genai_configs(folder, checkpoint, genai_variant, decoder)
            license_text = checkpoint.license or APPLE_NOTICE
            (folder / LICENSE_FILE).write_text(license_text, encoding="utf-8")
            progress("checksums", writer.total_bytes, writer.total_bytes)
            manifest = replace(
                _describe(checkpoint, sizes, graph_set, operators),
                graphs=graphs,
                files={path.name: describe_file(path) for path in sorted(folder.iterdir())},
                calibration=record,
                ranges=ranges_record,
            )
            measured: Mapping[str, VariantAgreement] = {}
            if existing:
                existing.check_weights(manifest)
                measured = existing.still_measured(manifest)

        # 5. Run and measure, while the folder has no name that a reader could take for a package.
        progress("golden values", writer.total_bytes, writer.total_bytes)
        with _disk_errors(destination, folder, writer.total_bytes):
            manifest = _add_golden(manifest, folder, runs_graphs=golden)
        if verify is not None:
            measured = {**measured, **verify(folder, checkpoint).variants}

        # 6. The card and then the manifest, last; then the folder takes its name.
        with _disk_errors(destination, folder, writer.total_bytes):
            if page:
                write_web_page(folder, page)
            manifest = finish_package(manifest, measured, folder)
    if calibration:
        calibration.remove()
    return manifest


def _add_golden(manifest: Manifest, folder: Path, *, runs_graphs: bool) -> Manifest:
    """Write golden.json, and return the manifest that lists it."""
    manifest.write(folder)  # the runtime opens the folder as a package
    record_golden(folder, manifest, runs_graphs=runs_graphs).write(folder)
    files = manifest.files | {GOLDEN_FILE: describe_file(folder / GOLDEN_FILE)}
    manifest = replace(manifest, files=files)
    manifest.write(folder)
    return manifest


def finish_package(
    manifest: Manifest, measured: Mapping[str, VariantAgreement], folder: Path
) -> Manifest:
    """Write the card and the manifest of a package with its measurements.

    Returns:
        The manifest as it was written.
    """
    manifest = replace(manifest, measured=dict(measured))
    write_card(folder / CARD_FILE, manifest)
    files = manifest.files | {CARD_FILE: describe_file(folder / CARD_FILE)}
    manifest = replace(manifest, files=dict(sorted(files.items())))
    manifest.write(folder)
    return manifest


def _describe(
    checkpoint: Checkpoint, sizes: Sequence[int], graph_set: GraphSet, operators: str
) -> Manifest:
    """Return the manifest without graphs, files and measurements."""
    decoder = checkpoint.config.decoder
    return Manifest(
        format_version=FORMAT_VERSION,
        source=Source(
            name=checkpoint.name,
            model_type=checkpoint.model_type,
            exporter=f"fastvlm-onnx {__version__}",
            parameters=sum(
                int(np.prod(tensor.shape, dtype=np.int64)) for tensor in checkpoint.tensors.values()
            ),
        ),
        image=ImageFormat(
            default_size=sizes[0],
            patch_size=VISION_PATCH_SIZE,
            padding="pad",
            resample="bicubic",
            rescale="1/255",
        ),
        prompt=checkpoint.prompt,
        decoder=DecoderFormat(
            hidden_size=decoder.hidden_size,
            num_hidden_layers=decoder.num_hidden_layers,
            num_key_value_heads=decoder.num_key_value_heads,
            head_dim=decoder.head_dim,
            vocab_size=decoder.vocab_size,
            context_length=decoder.max_position_embeddings,
            eos_token_ids=list(decoder.eos_token_ids),
            operators=operators,
        ),
        variants=dict(graph_set.variants),
        graphs={},
        files={},
    )


@contextmanager
def _disk_errors(destination: Path, folder: Path, needed_bytes: int) -> Iterator[None]:
    """Turn an OSError into a PackageError that says how much room the package needs."""
    try:
        yield
    except OSError as error:
        # numpy reports a short write without an errno.
        is_full = error.errno == errno.ENOSPC or shutil.disk_usage(folder).free < MEGABYTE
        reason = "the disk is full" if is_full else str(error)
        raise PackageError(
            f"{destination}: could not be written ({reason}); nothing was left behind. "
            f"The package needs {needed_bytes / 1e6:,.0f} MB."
        ) from None
