"""export_package(): a checkpoint in, a folder of ONNX graphs out, top to bottom."""

import errno
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

import fastvlm_onnx
from fastvlm_onnx.agreement import Agreement, VariantAgreement
from fastvlm_onnx.errors import InputError, PackageError
from fastvlm_onnx.export.architecture.config import VISION_PATCH_SIZE
from fastvlm_onnx.export.checkpoint.config_reader import check_image_size
from fastvlm_onnx.export.checkpoint.reader import Checkpoint
from fastvlm_onnx.export.disk.atomic_folder import check_destination, unfinished_folder
from fastvlm_onnx.export.disk.disk_space import check_disk_space
from fastvlm_onnx.export.sources.open_checkpoint import open_checkpoint
from fastvlm_onnx.export.variants import Parts, check_variants, declare
from fastvlm_onnx.export.writing.existing_package import Addition
from fastvlm_onnx.export.writing.model_card import license_text, write_card
from fastvlm_onnx.export.writing.package_writer import PackageWriter
from fastvlm_onnx.names import CARD_FILE, LICENSE_FILE, TOKENIZER_FILE
from fastvlm_onnx.package import (
    FORMAT_VERSION,
    DecoderFormat,
    ImageFormat,
    Manifest,
    Source,
    describe_file,
)
from fastvlm_onnx.progress import Progress, no_progress

MEGABYTE: Final = 1_000_000

Verify = Callable[[Path, Checkpoint], Agreement]
"""Measures a whole package against the checkpoint that it was made from."""


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
    progress: Progress = no_progress,
    verify: Verify | None = None,
) -> Manifest:
    """Export a checkpoint as one folder that needs no PyTorch to run.

    Args:
        source: a checkpoint in any form that `open_checkpoint` knows.
        destination: the folder to make; nothing is there until all of it is.
        precisions: variants to write, of `names.PRECISIONS`.
        image_sizes: sides of the square input in pixels, the first being the default; the
            checkpoint's own when None.
        operators: what the decoder is made of: ONNX Runtime's fused operators, or "standard" for
            ONNX's own alone.
        base: the checkpoint that a LoRA adapter was trained on.
        allow_nonfinite: export NaN and infinity instead of refusing the checkpoint.
        overwrite: replace a package that is already there, once the new one is whole.
        add: write what the package that is already there holds as well; its default image size
            stays.
        verify: `verify_package` of verify.py; what it measures goes into the manifest and the
            card. A package outside its tolerance is kept, and says so.

    Raises:
        CheckpointError: the checkpoint cannot be read; nothing was written.
        UnsupportedError: its configuration, an image size, or a precision in these operators is
            not built.
        InputError: an unknown precision or set of operators; both overwrite and add, or nothing
            to add.
        PackageError: the destination exists or cannot be written; nothing that could be added to,
            or made of another checkpoint.
    """
    destination = Path(destination).absolute()

    # 1. Everything that can be refused is refused before a byte is written.
    check_variants(precisions, operators)
    if overwrite and add:
        raise InputError("found both --add and --overwrite, expected one of them.")
    check_destination(destination, overwrite or add)
    addition = Addition(destination, precisions, image_sizes or (), operators) if add else None
    if addition:
        precisions, image_sizes = addition.precisions, addition.image_sizes
    checkpoint = open_checkpoint(
        source, base=base, allow_nonfinite=allow_nonfinite, progress=progress
    )
    sizes = tuple(dict.fromkeys(image_sizes or (checkpoint.config.vision.image_size,)))
    for size in sizes:
        check_image_size(size)

    # 2. Declare the graphs; every tensor of the checkpoint is accounted for.
    parts = declare(checkpoint, tuple(dict.fromkeys(precisions)), sizes, operators)

    # 3. Write: weights stream from the checkpoint's files, one tensor in memory at a time.
    writer = PackageWriter(parts, progress)
    check_disk_space(destination.parent, writer.total_bytes, "package")
    with unfinished_folder(destination) as folder:
        with _disk_errors(destination, folder, writer.total_bytes):
            writer.write(folder)
            (folder / TOKENIZER_FILE).write_text(checkpoint.tokenizer, encoding="utf-8")
            (folder / LICENSE_FILE).write_text(license_text(checkpoint), encoding="utf-8")
            manifest = _describe(checkpoint, sizes, parts)
            write_card(folder / CARD_FILE, manifest)

            # 4. The manifest last, then the folder takes its name.
            progress("checksums", writer.total_bytes, writer.total_bytes)
            names = sorted(path.name for path in folder.iterdir())
            manifest = replace(
                manifest, files={name: describe_file(folder / name) for name in names}
            )
            manifest.write(folder)
            if addition:
                addition.check_weights(manifest)
                manifest = record(addition.still_measured(manifest), manifest, folder)

        # 5. Measured when all else is done, and before anybody takes it for a package.
        if verify is not None:
            agreement = verify(folder, checkpoint)
            with _disk_errors(destination, folder, writer.total_bytes):
                manifest = record(agreement.variants, manifest, folder)
    return manifest


# --- describing --------------------------------------------------------------------------------


def _describe(checkpoint: Checkpoint, sizes: Sequence[int], parts: Parts) -> Manifest:
    decoder = checkpoint.config.decoder
    return Manifest(
        format_version=FORMAT_VERSION,
        source=Source(
            name=checkpoint.name,
            model_type=checkpoint.model_type,
            exporter=f"fastvlm-onnx {fastvlm_onnx.__version__}",
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
        ),
        variants=dict(parts.variants),
        files={},
    )


def record(measured: Mapping[str, VariantAgreement], manifest: Manifest, folder: Path) -> Manifest:
    """Write card and manifest of a package again, with what was measured; return the manifest."""
    manifest = replace(manifest, measured=dict(measured))
    write_card(folder / CARD_FILE, manifest)
    files = manifest.files | {CARD_FILE: describe_file(folder / CARD_FILE)}
    manifest = replace(manifest, files=files)
    manifest.write(folder)
    return manifest


@contextmanager
def _disk_errors(destination: Path, folder: Path, needed_bytes: int) -> Iterator[None]:
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
