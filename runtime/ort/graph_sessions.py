"""Opening the graphs of one variant, each on its provider."""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from fastvlm_onnx.names import (
    DECODER,
    LM_HEAD,
    LM_HEAD_SCREEN,
    PREFILL,
    PROJECTOR,
    VISION_ENCODER,
)
from fastvlm_onnx.package import Manifest
from fastvlm_onnx.runtime.ort.compiled_graphs import CompiledGraph
from fastvlm_onnx.runtime.ort.coreml import with_model_cache
from fastvlm_onnx.runtime.ort.hardware import cores
from fastvlm_onnx.runtime.ort.lazy_session import DeferredSession, LazySession
from fastvlm_onnx.runtime.ort.plugins import plugin_devices
from fastvlm_onnx.runtime.ort.provider_selection import ProviderChoice
from fastvlm_onnx.runtime.ort.providers import COREML, CPU, PROVIDERS
from fastvlm_onnx.runtime.ort.session import GraphRunner, GraphSession

VISION_GRAPHS: Final = (VISION_ENCODER, PROJECTOR)
LONGEST_FIRST: Final = (VISION_ENCODER, PREFILL, DECODER, LM_HEAD_SCREEN, PROJECTOR, LM_HEAD)


def graph_files(
    manifest: Manifest, variant_name: str, image_size: int, providers: Mapping[str, str]
) -> dict[str, str]:
    """The file of each graph of a variant.

    PREFILL is there only where it is a graph of its own. Where the decoder comes in parts, DECODER
    is the part up to lm_head, and LM_HEAD and LM_HEAD_SCREEN are the others.

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
    if parts := variant.split_decoder:
        files |= {
            DECODER: parts.decoder_layers,
            LM_HEAD: parts.lm_head,
            LM_HEAD_SCREEN: parts.lm_head_screen,
        }
    return files


def open_sessions(
    folder: Path,
    manifest: Manifest,
    files: Mapping[str, str],
    choices: Mapping[str, ProviderChoice],
    threads: int | None,
    *,
    compiled: Mapping[str, CompiledGraph],
    lazy_vision: bool,
    record_placement: bool,
) -> dict[str, GraphRunner]:
    """Open graphs, one on each core.

    Args:
        files: by graph, as `graph_files` gives them.
        choices: the provider of each graph.
        compiled: by graph, as `compiled_graphs` gives them.
        lazy_vision: open the vision encoder only while it runs.
        record_placement: record which nodes run where on the CPU too.

    Raises:
        PackageError: the CPU provider cannot load a graph.
        ProviderError: another provider cannot load a graph, or takes no node of it.
    """
    kinds: dict[str, type[GraphSession] | type[LazySession]] = {LM_HEAD: DeferredSession}
    if lazy_vision:
        kinds[VISION_ENCODER] = LazySession

    def open_graph(graph: str) -> GraphRunner:
        file, choice = files[graph], _choice(choices, graph)
        record, provider = manifest.graphs[file], PROVIDERS.get(choice.name)
        # ONNX Runtime's int8 vision encoder is sooner so, and no other image moves its scales.
        is_int8_on_cpu = choice.ep == CPU and record.int8_products
        one_image = is_int8_on_cpu or (provider is not None and provider.fixes_batch)
        place = compiled.get(graph)
        if place and choice.ep == COREML:
            choice, place = with_model_cache(choice, place), None
        return kinds.get(graph, GraphSession)(
            folder / file,
            choice,
            threads,
            has_int8_products=record.int8_products,
            record_placement=record_placement,
            fixes_batch=one_image and graph in VISION_GRAPHS,
            compiled=place,
        )

    # A session's opening keeps a core busy. More of them at once than cores disturb each other, and
    # one core would wait at the end for a long one that came last.
    order = sorted(files, key=LONGEST_FIRST.index)
    with ThreadPoolExecutor(min(len(files), cores())) as pool:
        opened = dict(zip(order, pool.map(open_graph, order), strict=True))
    return {graph: opened[graph] for graph in files}


def _choice(choices: Mapping[str, ProviderChoice], graph: str) -> ProviderChoice:
    """The provider of a graph; lm_head runs where the other part of the decoder does."""
    return choices[DECODER if graph in (LM_HEAD, LM_HEAD_SCREEN) else graph]


def compiled_graphs(
    manifest: Manifest, files: Mapping[str, str], choices: Mapping[str, ProviderChoice]
) -> dict[str, CompiledGraph]:
    """The place of each compiled graph; a graph that is not kept compiled is missing.

    Args:
        files: by graph, as `graph_files` gives them.
        choices: the provider of each graph.
    """
    places = {}
    for graph, file in files.items():
        choice = _choice(choices, graph)
        provider = PROVIDERS.get(choice.name)
        # The provider of an OpenVINO build writes compiled graphs that it cannot read.
        keeps_contexts = provider and provider.keeps_contexts and plugin_devices(choice.ep)
        if not (choice.ep == COREML or keeps_contexts) or "cache_dir" in choice.options:
            continue
        names = (file, *manifest.graphs[file].weights)
        digests = "".join(manifest.files[name].sha256 for name in names)
        digest = hashlib.sha256(digests.encode()).hexdigest()
        places[graph] = CompiledGraph(file, digest, choice.ep, choice.options)
    return places


def weights_in(
    manifest: Manifest,
    files: Mapping[str, str],
    graphs: Collection[str],
    others: Collection[str],
) -> set[str]:
    """Names of the weight files that these graphs alone read.

    Args:
        files: by graph, as `graph_files` gives them.
        graphs: some graphs of `files`.
        others: files that the runtime reads itself: those of the token embeddings, whose rows may
            be the weights of lm_head.
    """

    def weights(names: Iterable[str]) -> set[str]:
        return {file for name in names for file in manifest.graphs[files[name]].weights}

    return weights(graphs) - weights(set(files) - set(graphs)) - set(others)
