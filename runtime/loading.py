"""Open a package: choose a variant, an image size and providers, and check the files."""

import logging
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from fastvlm_onnx.arguments import checks_arguments
from fastvlm_onnx.deprecation import renamed
from fastvlm_onnx.errors import InputError, ProviderError
from fastvlm_onnx.names import PROJECTOR, TOKENIZER_FILE, VISION_ENCODER
from fastvlm_onnx.package import Manifest, Variant, parse_version, read_manifest
from fastvlm_onnx.package_files import check_files, check_hashes, check_sizes
from fastvlm_onnx.runtime.arrays import FloatArray
from fastvlm_onnx.runtime.hub import package_folder
from fastvlm_onnx.runtime.model import IMAGE_CACHE_BYTES, PREFIX_CACHE_BYTES, FastVLM
from fastvlm_onnx.runtime.ort.coreml import check_features
from fastvlm_onnx.runtime.ort.graph_file import check_graph
from fastvlm_onnx.runtime.ort.graph_sessions import (
    compiled_graphs,
    graph_files,
    open_sessions,
    weights_in,
)
from fastvlm_onnx.runtime.ort.openvino import vision_graph, with_float_vision
from fastvlm_onnx.runtime.ort.provider_selection import (
    ProviderChoice,
    Providers,
    assign_providers,
    parse_providers,
    preferred_variants,
)
from fastvlm_onnx.runtime.ort.providers import (
    COREML,
    CPU,
    ProviderOptions,
    import_onnxruntime,
)
from fastvlm_onnx.runtime.ort.session import GraphSession
from fastvlm_onnx.runtime.text.tokenizer import TextTokenizer
from fastvlm_onnx.runtime.vision.image import preprocess, read_picture
from fastvlm_onnx.runtime.vision.image_encoder import ImageEncoder
from fastvlm_onnx.samples import SAMPLE_PICTURE
from fastvlm_onnx.variants import variants_for_provider

# Their int8 vision encoders cannot be made exact where int8 products saturate.
OLD_EXPORTERS: Final = ("fastvlm-onnx 0.1.0",)
log = logging.getLogger("fastvlm_onnx")


@renamed(records_placement="record_placement")
@checks_arguments
def load(
    folder: str | os.PathLike[str],
    *,
    precision: str | None = None,
    providers: Providers = "auto",
    provider_options: ProviderOptions | None = None,
    image_size: int | None = None,
    threads: int | None = None,
    image_cache_bytes: int = IMAGE_CACHE_BYTES,
    prefix_cache_bytes: int = PREFIX_CACHE_BYTES,
    lazy_vision: bool = False,
    record_placement: bool = False,
) -> FastVLM:
    """Open an exported package.

    Args:
        folder: the package's folder, or its id on the Hugging Face hub: owner/name or
            owner/name@revision. A package on the hub is downloaded into Hugging Face's cache.
        precision: a variant of the package; the variant that suits the providers best when None.
        providers: the providers that run the graphs: `auto` (described in docs/providers.md), a
            name like `cuda`, `vision=coreml,decoder=cpu` as text or as a mapping, or a list in
            the form of ONNX Runtime, of names or of names with options.
        provider_options: options for the named provider, over the defaults of this library.
        image_size: side of the square input in pixels; the package's default when None.
        threads: threads of each graph; one per physical core that this process may use when None.
        image_cache_bytes: memory for the image features that chats and batches keep, so that an
            image is encoded once; 0 keeps no features.
        prefix_cache_bytes: memory for keys and values of images that `see` prepared and of prompts
            that a scheduler ran, so that a prompt with the same beginning starts after it; 0 keeps
            nothing.
        lazy_vision: open the vision encoder for each image and close it after: less memory, more
            time for each image.
        record_placement: record which nodes run where on the CPU too (`sessions`).

    Raises:
        PackageError: the folder is no package; or a file of it is missing, cut, altered or no
            regular file, lies outside the folder, or names a file that the manifest does not list.
        InputError: the package lacks the variant or the image size, or has no variant for the
            providers; or an argument is out of range or of another type.
        ProviderError: ONNX Runtime is missing or too old for the variant; or a provider is not
            installed, takes no node of a graph, or cannot load a graph.
    """
    begin = time.perf_counter()
    path = package_folder(folder)
    as_written = read_manifest(path)
    manifest = with_float_vision(as_written)
    asked = parse_providers(providers, provider_options)
    variant = choose_variant(manifest, precision, path, asked)
    image_size = choose_image_size(manifest, variant, image_size, path)
    choices = assign_providers(
        asked, variant, openvino_vision=vision_graph(manifest, variant, image_size)
    )
    names = {graph: choice.name for graph, choice in choices.items()}
    check_onnxruntime(manifest, variant, path, names)
    graphs = graph_files(manifest, variant, image_size, names)
    compiled = compiled_graphs(manifest, graphs, choices)
    files = manifest.files_of(variant, image_size, names)
    weights = [name for name in files if name.endswith((".data", ".npy"))]
    check_sizes(path, weights, manifest)
    check_files(path, [name for name in files if name not in weights], manifest)
    for file in graphs.values():
        check_graph(path / file, manifest.graphs[file].weights)
    # A compiled graph has checksums of its own, and does not read the package's weights.
    stored = [] if lazy_vision else [graph for graph in compiled if compiled[graph].exists()]
    embeddings = manifest.variants[variant].embedding_files
    unread = weights_in(manifest, graphs, stored, embeddings)
    # Hashing new weights and reading the tokenizer take long, so the graphs open meanwhile. Altered
    # weights are still numbers, and cannot harm before the check ends.
    with ThreadPoolExecutor(2) as pool:
        tokenizer = pool.submit(TextTokenizer, path / TOKENIZER_FILE)
        read = [name for name in weights if name not in unread]
        check = pool.submit(check_hashes, path, read, manifest, remember=True)
        try:
            sessions = open_sessions(
                path,
                manifest,
                graphs,
                choices,
                threads,
                compiled=compiled,
                lazy_vision=lazy_vision,
                record_placement=record_placement,
            )
            # A damaged compiled graph was made anew from the package.
            anew = [graph for graph in stored if not sessions[graph].is_stored]
            late = sorted(weights_in(manifest, graphs, anew, embeddings) & unread)
            check_hashes(path, late, manifest, remember=True)
            model = FastVLM(
                path,
                as_written,
                variant,
                image_size,
                sessions,
                tokenizer.result(),
                threads,
                image_cache_bytes=image_cache_bytes,
                prefix_cache_bytes=prefix_cache_bytes,
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
            GraphSession(
                session.path,
                ProviderChoice(CPU),
                model.threads,
                has_int8_products=session.int8_weights is not None,
            )
            for session in graphs
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


def choose_variant(
    manifest: Manifest,
    precision: str | None,
    folder: Path,
    asked: Mapping[str, ProviderChoice] | None = None,
) -> str:
    """Choose the asked variant, or the variant that suits the providers best.

    Args:
        manifest: the package's manifest.
        precision: the asked variant; None for the best variant that this ONNX Runtime can run.
        folder: the package's folder, for messages.
        asked: the named providers; empty for `auto`, None for the CPU.

    Raises:
        InputError: the package lacks the variant; the message names the command that adds it.
        ProviderError: this ONNX Runtime is too old for every fitting variant.
    """
    if precision is not None:
        if precision not in manifest.variants:
            raise InputError(
                f"{folder}: has no {precision} variant, only {', '.join(manifest.variants)}; "
                f"add it with `{add_command(manifest, folder)} --precision {precision}`."
            )
        return precision
    if asked is None:
        preferred = variants_for_provider("cpu")
    else:
        made = [name for name, v in manifest.variants.items() if "openvino" in v.per_provider]
        preferred = preferred_variants(asked, made)
    fitting = [name for name in preferred or manifest.variants if name in manifest.variants]
    if not fitting:
        names = ", ".join(dict.fromkeys(choice.name for choice in (asked or {}).values()))
        raise InputError(
            f"{folder}: has no variant for {names}, only {', '.join(manifest.variants)}; "
            f"add one with `{add_command(manifest, folder)} --precision {preferred[0]}`, or "
            "choose with --precision."
        )
    for name in fitting:
        if not _lacks_onnxruntime(manifest, manifest.variants[name]):
            return name
    least = {name: manifest.least_onnxruntime(manifest.variants[name]) for name in fitting}
    raise _too_old(folder, min(least, key=lambda name: parse_version(least[name])), least)


def check_onnxruntime(
    manifest: Manifest, variant: str, folder: Path, providers: Mapping[str, str] | None = None
) -> None:
    """Check that the installed ONNX Runtime can run a variant.

    Args:
        manifest: the package's manifest.
        variant: the variant's name.
        folder: the package's folder, for messages.
        providers: short name of the provider of each graph, by the graph's name.

    Raises:
        ProviderError: ONNX Runtime is too old; the message says which version to install.
    """
    chosen = manifest.variants[variant].on_providers(providers or {})
    if _lacks_onnxruntime(manifest, chosen):
        raise _too_old(folder, variant, {variant: manifest.least_onnxruntime(chosen)})


def _lacks_onnxruntime(manifest: Manifest, variant: Variant) -> bool:
    installed = parse_version(import_onnxruntime().__version__)
    return installed < parse_version(manifest.least_onnxruntime(variant))


def _too_old(folder: Path, variant: str, least: Mapping[str, str]) -> ProviderError:
    version = least[variant]
    return ProviderError(
        f"{folder}: ONNX Runtime is {import_onnxruntime().__version__}, and {variant} needs at "
        f"least {version}; run `pip install -U 'onnxruntime>={version}'` (onnxruntime-gpu on "
        "NVIDIA), or choose another variant with --precision."
    )


def choose_image_size(
    manifest: Manifest, variant: str, image_size: int | None, folder: Path
) -> int:
    """Choose the asked image size, or the package's default when None.

    Raises:
        InputError: the variant lacks the image size; the message names the command that adds it.
    """
    sizes = manifest.variants[variant].vision_encoder
    chosen = manifest.image.default_size if image_size is None else image_size
    if str(chosen) not in sizes:
        raise InputError(
            f"{folder}: was not exported for {chosen} pixels, only for {', '.join(sizes)}; "
            f"add it with `{add_command(manifest, folder)} --image-size {chosen}`."
        )
    return chosen


def add_command(manifest: Manifest, folder: Path) -> str:
    """Return the command that adds to a package; the checkpoint's name may lack its path."""
    return f"fastvlm-onnx export {manifest.source.name} -o {folder} --add"
