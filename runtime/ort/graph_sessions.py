"""Opening the graphs of one variant, each on its provider."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from fastvlm_onnx.names import DECODER, PREFILL, PROJECTOR, VISION_ENCODER
from fastvlm_onnx.package import Manifest
from fastvlm_onnx.runtime.ort.coreml import with_model_cache
from fastvlm_onnx.runtime.ort.provider_selection import ProviderChoice
from fastvlm_onnx.runtime.ort.providers import PROVIDERS
from fastvlm_onnx.runtime.ort.session import GraphRunner, GraphSession, LazySession

VISION_GRAPHS: Final = (VISION_ENCODER, PROJECTOR)


def graph_files(
    manifest: Manifest, variant_name: str, image_size: int, providers: Mapping[str, str]
) -> dict[str, str]:
    """The file of each graph of a variant; PREFILL only where it is a graph of its own.

    Args:
        providers: the short name of each graph's provider, which may have a graph of its own.
    """
    variant = manifest.variants[variant_name].on_providers(providers)
    files = {
        VISION_ENCODER: variant.vision_encoder[str(image_size)],
        PROJECTOR: variant.projector,
        DECODER: variant.decoder,
    }
    if variant.prefill != variant.decoder:
        files[PREFILL] = variant.prefill
    return files


def open_sessions(
    folder: Path,
    manifest: Manifest,
    files: Mapping[str, str],
    choices: Mapping[str, ProviderChoice],
    threads: int | None,
    *,
    lazy_vision: bool,
    record_placement: bool,
) -> dict[str, GraphRunner]:
    """Open graphs.

    Args:
        files: by graph, as `graph_files` gives them.
        choices: the provider of each graph.
        lazy_vision: open the vision encoder only while it runs.
        record_placement: record which nodes run where on the CPU too.

    Raises:
        PackageError: the CPU provider cannot load a graph.
        ProviderError: another provider cannot load a graph, or takes no node of it.
    """
    sessions: dict[str, GraphRunner] = {}
    for graph, file in files.items():
        provider = PROVIDERS.get(choices[graph].name)
        open_graph = LazySession if lazy_vision and graph == VISION_ENCODER else GraphSession
        sessions[graph] = open_graph(
            folder / file,
            with_model_cache(choices[graph], manifest.files[file].sha256),
            threads,
            has_int8_products=manifest.graphs[file].int8_products,
            record_placement=record_placement,
            fixes_batch=provider is not None and provider.fixes_batch and graph in VISION_GRAPHS,
        )
    return sessions
