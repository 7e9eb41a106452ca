"""Opening a package: which variant, which image size, which providers; nothing of it damaged."""

import logging
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from fastvlm_onnx.errors import InputError
from fastvlm_onnx.names import PROJECTOR, VISION_ENCODER
from fastvlm_onnx.package import Manifest, check_files, check_hashes, check_sizes, read_manifest
from fastvlm_onnx.runtime.arrays import FloatArray
from fastvlm_onnx.runtime.hub import package_folder
from fastvlm_onnx.runtime.model import IMAGE_CACHE_BYTES, FastVLM
from fastvlm_onnx.runtime.ort.coreml import check_features
from fastvlm_onnx.runtime.ort.graph_sessions import graph_files, open_sessions
from fastvlm_onnx.runtime.ort.provider_selection import (
    Choice,
    Providers,
    parse,
    plan,
    wanted_precisions,
)
from fastvlm_onnx.runtime.ort.providers import COREML, CPU, PROVIDERS, ProviderOptions
from fastvlm_onnx.runtime.ort.session import GraphSession
from fastvlm_onnx.runtime.vision.image import preprocess, read_picture
from fastvlm_onnx.runtime.vision.image_encoder import ImageEncoder
from fastvlm_onnx.samples import SAMPLE_PICTURE

# Their int8 vision encoders cannot be made exact where int8 products saturate.
OLD_EXPORTERS: Final = ("fastvlm-onnx 0.1.0",)
log = logging.getLogger("fastvlm_onnx")


def load(
    folder: str | os.PathLike[str],
    *,
    precision: str | None = None,
    providers: Providers = "auto",
    provider_options: ProviderOptions | None = None,
    image_size: int | None = None,
    threads: int | None = None,
    image_cache_bytes: int = IMAGE_CACHE_BYTES,
    lazy_vision: bool = False,
    records_placement: bool = False,
) -> FastVLM:
    """Open an exported package.

    Args:
        folder: the package's folder, or its id on the Hugging Face hub: owner/name or
            owner/name@revision. A package on the hub is downloaded into Hugging Face's cache.
        precision: a variant of the package; the one that suits the providers best when None.
        providers: what runs the graphs. `auto` (docs/providers.md says what it does), a name like
            `cuda`, `vision=coreml,decoder=cpu` or the mapping of it, or ONNX Runtime's own list of
            names, or of names with their options, whose first is what was asked for.
        provider_options: for the provider asked for, over ours.
        image_size: side of the square input in pixels, one the package was exported for; its
            default when None.
        threads: per graph; one per physical core that this process may use when None.
        image_cache_bytes: image features that chats and batches keep, so that a picture asked about
            again is not encoded again; 0 keeps none.
        lazy_vision: open the vision encoder for each picture and close it after: for machines short
            of memory, at the cost of opening it.
        records_placement: note which nodes run where on the CPU too (`sessions`).

    Raises:
        PackageError: the folder is no package, or a file of it is missing, cut or altered.
        InputError: the package lacks this precision or image size, or one for these providers; a
            number cannot be used.
        ProviderError: ONNX Runtime or a provider is not installed, or a provider takes no node of
            a graph, or cannot load it.
    """
    begin = time.perf_counter()
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}; expected 1 or more.")
    if image_cache_bytes < 0:
        raise InputError(f"image_cache_bytes is {image_cache_bytes}; expected 0 (off) or more.")
    path = package_folder(folder)
    manifest = read_manifest(path)
    asked = parse(providers, provider_options)
    precision = choose_precision(manifest, precision, path, asked)
    image_size = choose_image_size(manifest, precision, image_size, path)
    choices = plan(asked, precision)
    files = manifest.files_of(precision, image_size)
    weights = [name for name in files if name.endswith((".data", ".npy"))]
    check_sizes(path, weights, manifest)
    check_files(path, [name for name in files if name not in weights], manifest)
    # Weights take long to hash, and are opened meanwhile: whatever their bytes, they are numbers.
    with ThreadPoolExecutor(1) as pool:
        check = pool.submit(check_hashes, path, weights, manifest)
        try:
            sessions = open_sessions(
                path,
                manifest,
                graph_files(manifest, precision, image_size),
                choices,
                threads,
                lazy_vision=lazy_vision,
                record_placement=records_placement,
            )
            model = FastVLM(
                path,
                manifest,
                precision,
                image_size,
                sessions,
                threads,
                image_cache_bytes=image_cache_bytes,
            )
            check_coreml(model)
        finally:
            check.result()
    model.load_seconds = time.perf_counter() - begin
    warn_of_saturation(model, path)
    return model


def check_coreml(model: FastVLM) -> None:
    """Compare CoreML's image features of a sample image with the CPU's.

    Raises:
        ProviderError: the features differ.
    """
    graphs = [model.sessions[graph] for graph in (VISION_ENCODER, PROJECTOR)]
    if all(session.choice.ep != COREML for session in graphs):
        return
    encoder = model.image_encoder
    pixel_values = preprocess(read_picture(SAMPLE_PICTURE), model.image_size)

    def encode_on_cpu(pixel_values: FloatArray) -> FloatArray:
        vision_encoder, projector = (
            GraphSession(session.path, Choice(CPU), model.threads) for session in graphs
        )
        on_cpu = ImageEncoder(
            vision_encoder,
            projector,
            image_size=encoder.image_size,
            num_image_tokens=encoder.num_image_tokens,
            hidden_size=encoder.hidden_size,
            cache_bytes=0,
        )
        return on_cpu.encode_pixel_values(pixel_values)

    file = model.manifest.files[graphs[0].path.name]
    check_features(file.sha256, pixel_values, encoder.encode_pixel_values, encode_on_cpu)


def warn_of_saturation(model: FastVLM, folder: Path) -> None:
    """Warn where int8 products saturate and the package's graphs cannot be made exact.

    Packages exported before 0.2 keep weights outside the Scan bodies that use them, where ONNX
    Runtime does not find them to rewrite them.
    """
    vision_encoder = model.sessions[VISION_ENCODER]
    if vision_encoder.int8_weights == "uint8" and model.manifest.source.exporter in OLD_EXPORTERS:
        log.warning(
            "%s: %s gives inexact image features on this processor, which saturates int8 products "
            "(AVX2 without VNNI); packages exported since 0.2 are exact: export it again with "
            "`%s`.",
            folder,
            model.precision,
            f"fastvlm-onnx export {model.manifest.source.name} -o {folder} --precision "
            f"{','.join(model.manifest.variants)} --overwrite",
        )


def choose_precision(
    manifest: Manifest,
    precision: str | None,
    folder: Path,
    asked: Mapping[str, Choice] | None = None,
) -> str:
    """The asked variant if the package has it, what suits the providers when None.

    Args:
        asked: what was asked for by name; nothing when empty, the CPU when None.

    Raises:
        InputError: the package lacks it; the message says how to add it.
    """
    if precision is None:
        wanted = PROVIDERS["cpu"].precisions if asked is None else wanted_precisions(asked)
        fitting = [name for name in wanted or manifest.variants if name in manifest.variants]
        if not fitting:
            names = ", ".join(dict.fromkeys(choice.name for choice in (asked or {}).values()))
            raise InputError(
                f"{folder}: has no variant for {names}, only {', '.join(manifest.variants)}; "
                f"add one with `{add_command(manifest, folder)} --precision {wanted[0]}`, or "
                "choose with --precision."
            )
        return fitting[0]
    if precision not in manifest.variants:
        raise InputError(
            f"{folder}: has no {precision} variant, only {', '.join(manifest.variants)}; "
            f"add it with `{add_command(manifest, folder)} --precision {precision}`."
        )
    return precision


def choose_image_size(
    manifest: Manifest, precision: str, image_size: int | None, folder: Path
) -> int:
    """The asked image size if the variant has it, the default when None; else InputError."""
    sizes = manifest.variants[precision].vision_encoder
    chosen = manifest.image.default_size if image_size is None else image_size
    if str(chosen) not in sizes:
        raise InputError(
            f"{folder}: was not exported for {chosen} pixels, only for {', '.join(sizes)}; "
            f"add it with `{add_command(manifest, folder)} --image-size {chosen}`."
        )
    return chosen


def add_command(manifest: Manifest, folder: Path) -> str:
    """The command that adds to a package; a folder's or archive's name lacks its path."""
    return f"fastvlm-onnx export {manifest.source.name} -o {folder} --add"
