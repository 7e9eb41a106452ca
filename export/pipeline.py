"""export_package(): a checkpoint in, a folder of ONNX graphs out, top to bottom."""

import errno
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import onnx_ir as ir

import fastvlm_onnx
from fastvlm_onnx.agreement import Agreement
from fastvlm_onnx.errors import InputError, PackageError
from fastvlm_onnx.export.card import license_text, write_card
from fastvlm_onnx.export.checkpoint import Checkpoint, open_checkpoint
from fastvlm_onnx.export.config import VISION_PATCH_SIZE
from fastvlm_onnx.export.decoder import build_decoder, embedding_rows
from fastvlm_onnx.export.layouts import PROJECTOR_PREFIX, VISION_PREFIX
from fastvlm_onnx.export.projector import build_projector
from fastvlm_onnx.export.read_config import check_image_size
from fastvlm_onnx.export.stored import write_npy, write_tensors
from fastvlm_onnx.export.tensors import LazyArray, Weights
from fastvlm_onnx.export.unfinished import check_destination, unfinished_folder
from fastvlm_onnx.export.vision_encoder import build_vision_encoder
from fastvlm_onnx.names import (
    CARD_FILE,
    DECODER,
    EMBED_TOKENS_FILE,
    LICENSE_FILE,
    PRECISIONS,
    PROJECTOR,
    TOKENIZER_FILE,
    graph_file,
    vision_encoder_file,
    weights_file,
)
from fastvlm_onnx.package import (
    FORMAT_VERSION,
    DecoderFormat,
    ImageFormat,
    Manifest,
    Source,
    Variant,
    describe_file,
)

# Smaller tensors stay inside the graph: some loaders refuse tiny external ones.
INLINE_BYTES: Final = 1024
MEGABYTE: Final = 1_000_000

Progress = Callable[[str, int, int], None]
"""Called with the stage's name, bytes written so far, and bytes in all."""
Verify = Callable[[Path, Checkpoint], Agreement]
"""Measures a whole package against the checkpoint that it was made from."""


def no_progress(stage: str, written_bytes: int, total_bytes: int) -> None:
    """The default: nobody is told."""


def export_package(
    source: str | Path,
    destination: str | Path,
    *,
    precisions: Sequence[str] = ("fp32",),
    image_sizes: Sequence[int] | None = None,
    base: str | Path | None = None,
    allow_nonfinite: bool = False,
    overwrite: bool = False,
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
        base: the checkpoint that a LoRA adapter was trained on.
        allow_nonfinite: export NaN and infinity instead of refusing the checkpoint.
        overwrite: replace a package that is already there, once the new one is whole.
        verify: `verify_package` of verify.py; what it measures goes into the manifest and the
            card. A package outside its tolerance is kept, and says so.

    Raises:
        CheckpointError: the checkpoint cannot be read; nothing was written.
        UnsupportedError: its configuration, or an image size, is not built.
        InputError: an unknown precision.
        PackageError: the destination exists or cannot be written.
    """
    destination = Path(destination).absolute()

    # 1. Everything that can be refused is refused before a byte is written.
    for precision in precisions:
        if precision not in PRECISIONS:
            raise InputError(
                f"precision {precision!r} is unknown; expected one of {', '.join(PRECISIONS)}."
            )
    check_destination(destination, overwrite)
    checkpoint = open_checkpoint(source, base=base, allow_nonfinite=allow_nonfinite)
    sizes = tuple(dict.fromkeys(image_sizes or (checkpoint.config.vision.image_size,)))
    for size in sizes:
        check_image_size(size)

    # 2. Declare the graphs; every tensor of the checkpoint is accounted for.
    graphs = _declare_graphs(checkpoint, sizes)

    # 3. Write: weights stream from the checkpoint's files, one tensor in memory at a time.
    writer = _Writer(graphs, progress)
    _check_disk_space(destination, writer.total_bytes)
    with unfinished_folder(destination) as folder:
        with _disk_errors(destination, folder, writer.total_bytes):
            writer.write(folder)
            (folder / TOKENIZER_FILE).write_text(checkpoint.tokenizer, encoding="utf-8")
            (folder / LICENSE_FILE).write_text(license_text(checkpoint), encoding="utf-8")
            manifest = _describe(checkpoint, sizes)
            write_card(folder / CARD_FILE, manifest)

            # 4. The manifest last, then the folder takes its name.
            progress("checksums", writer.total_bytes, writer.total_bytes)
            names = sorted(path.name for path in folder.iterdir())
            manifest = replace(
                manifest, files={name: describe_file(folder / name) for name in names}
            )
            manifest.write(folder)

        # 5. Measured when all else is done, and before anybody takes it for a package.
        if verify is not None:
            agreement = verify(folder, checkpoint)
            with _disk_errors(destination, folder, writer.total_bytes):
                manifest = _record(agreement, manifest, folder)
    return manifest


# --- declaring ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Graphs:
    """Models by file name, and the token embeddings, which are no graph."""

    models: Mapping[str, ir.Model]
    embed_tokens: LazyArray


def _declare_graphs(checkpoint: Checkpoint, sizes: Sequence[int]) -> _Graphs:
    config, version = checkpoint.config, fastvlm_onnx.__version__
    weights = Weights(checkpoint.tensors)
    vision = weights / VISION_PREFIX.rstrip(".")
    models = {
        vision_encoder_file(size, "fp32"): build_vision_encoder(
            vision, config.vision, size, version
        )
        for size in sizes
    }
    projector = weights / PROJECTOR_PREFIX.rstrip(".")
    models[graph_file(PROJECTOR, "fp32")] = build_projector(projector, config, version)
    models[graph_file(DECODER, "fp32")] = build_decoder(weights, config.decoder, version)
    embed_tokens = embedding_rows(weights, config.decoder)
    weights.check_all_taken()
    return _Graphs(models, embed_tokens)


def _describe(checkpoint: Checkpoint, sizes: Sequence[int]) -> Manifest:
    decoder = checkpoint.config.decoder
    return Manifest(
        format_version=FORMAT_VERSION,
        source=Source(
            name=checkpoint.name,
            model_type="llava_qwen2",
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
        variants={
            "fp32": Variant(
                vision_encoder={str(size): vision_encoder_file(size, "fp32") for size in sizes},
                projector=graph_file(PROJECTOR, "fp32"),
                decoder=graph_file(DECODER, "fp32"),
                embed_tokens=EMBED_TOKENS_FILE,
            )
        },
        files={},
    )


# --- writing -----------------------------------------------------------------------------------


class _Writer:
    """Writes graphs, weights and embeddings, and reports progress in bytes."""

    def __init__(self, graphs: _Graphs, progress: Progress) -> None:
        self.graphs, self.progress = graphs, progress
        self.written_bytes = 0
        weights = {
            (weights_file(name), tensor_name): tensor.nbytes
            for name, model in graphs.models.items()
            for tensor_name, tensor in _external_tensors(model).items()
        }
        self.total_bytes = sum(weights.values()) + graphs.embed_tokens.size_bytes

    def write(self, folder: Path) -> None:
        written: dict[str, dict[str, ir.ExternalTensor]] = {}
        for name, model in self.graphs.models.items():
            stage = name.split(".")[0].replace("_", " ")
            data_file = weights_file(name)
            # Graphs of several image sizes hold the same weights: written once, named by all.
            if data_file not in written:
                written[data_file] = write_tensors(
                    _external_tensors(model), folder, data_file, partial(self._count, stage)
                )
            for value in model.graph.initializers.values():
                if value.name in written[data_file]:
                    value.const_value = written[data_file][value.name]
            ir.save(model, folder / name)
        # float16 when that is exact, as it mostly is from bfloat16.
        path, rows = folder / EMBED_TOKENS_FILE, self.graphs.embed_tokens
        before = self.written_bytes
        if not write_npy(path, rows, np.float16, partial(self._count, EMBED_TOKENS_FILE)):
            self.written_bytes = before
            write_npy(path, rows, np.float32, partial(self._count, EMBED_TOKENS_FILE))

    def _count(self, stage: str, size_bytes: int) -> None:
        self.written_bytes += size_bytes
        self.progress(stage, self.written_bytes, self.total_bytes)


def _external_tensors(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    return {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.const_value.nbytes > INLINE_BYTES
    }


def _record(agreement: Agreement, manifest: Manifest, folder: Path) -> Manifest:
    """Write card and manifest again, with what was measured."""
    manifest = replace(manifest, measured=agreement.variants)
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


def _check_disk_space(destination: Path, needed_bytes: int) -> None:
    existing = next(p for p in destination.parents if p.exists())
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < needed_bytes:
        raise PackageError(
            f"{existing}: {free_bytes / 1e6:,.0f} MB are free, and the package needs "
            f"{needed_bytes / 1e6:,.0f} MB; make room, or give another folder with -o."
        )
