"""OpenVINO's options, the graphs that it gets, and the processors on which `auto` takes it."""

import json
from dataclasses import replace
from typing import Any, Final

from fastvlm_onnx.package import Graph, Manifest, ProviderGraphs, Variant
from fastvlm_onnx.runtime.ort.hardware import processor_features
from fastvlm_onnx.runtime.ort.plugins import plugin_devices
from fastvlm_onnx.runtime.ort.providers import OPENVINO, ProviderOptions
from fastvlm_onnx.runtime.ort.saturation import int8_products_saturate
from fastvlm_onnx.variants import VARIANTS

# The plugin drops these options of the older provider and reads them from `load_config` only.
IN_LOAD_CONFIG: Final = {
    "precision": "INFERENCE_PRECISION_HINT",
    "num_of_threads": "INFERENCE_NUM_THREADS",
    "cache_dir": "CACHE_DIR",
}
LOAD_CONFIG: Final = "load_config"
FLOAT_VARIANT: Final = "fp32"


def options_with_threads(options: ProviderOptions, threads: int) -> dict[str, str]:
    """Return a plugin's options with the number of threads, which it does not take from a session.

    Args:
        options: the caller's options over the defaults. A caller's `load_config` wins.
        threads: threads for the graph; OpenVINO chooses when 0.

    Returns:
        The options in the form that the plugin reads. A `load_config` that is no JSON object is
        left as it is.
    """
    others = dict(options)
    device = others.get("device_type", "CPU")
    config: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads} if threads else {}
    config |= {IN_LOAD_CONFIG[key]: others.pop(key) for key in IN_LOAD_CONFIG if key in others}
    try:
        given = json.loads(others.pop(LOAD_CONFIG, "{}"))
        given[device] = config | given.get(device, {})
    except (ValueError, TypeError, AttributeError):
        return dict(options)
    return others | {LOAD_CONFIG: json.dumps(given)}


def with_float_vision(manifest: Manifest) -> Manifest:
    """Let the variants with int8 vision use the vision graphs of `fp32` on OpenVINO.

    The int8 graphs are made for the CPU provider: OpenVINO cuts them into parts and is slow. It
    runs the float graphs in bfloat16 where the processor has it. An image size for which the
    package has a graph made for OpenVINO keeps that graph.
    """
    floats = manifest.variants.get(FLOAT_VARIANT)
    if floats is None:
        return manifest
    return replace(
        manifest,
        variants={
            name: _borrowing(variant, floats) if _has_int8_vision(name) else variant
            for name, variant in manifest.variants.items()
        },
    )


def _has_int8_vision(variant: str) -> bool:
    return variant in VARIANTS and VARIANTS[variant].vision_precision == "int8"


def _borrowing(variant: Variant, floats: Variant) -> Variant:
    own = variant.per_provider.get("openvino", ProviderGraphs())
    sizes = {
        size: file for size, file in floats.vision_encoder.items() if size in variant.vision_encoder
    }
    graphs = replace(
        own,
        vision_encoder=sizes | own.vision_encoder,
        projector=own.projector or floats.projector,
    )
    return replace(variant, per_provider={**variant.per_provider, "openvino": graphs})


def reason_against(graph: Graph | None) -> str | None:
    """Return why `auto` does not give a vision encoder to OpenVINO; None where it does.

    Args:
        graph: facts about the graph that the package has for OpenVINO; None if it has none.
    """
    if graph is None:
        return (
            "the package has no vision graph for it: export with `--target openvino`, or with "
            f"`{FLOAT_VARIANT}` beside this variant"
        )
    if graph.int8_products:
        return "its int8 products saturate on this processor" if int8_products_saturate() else None
    if not plugin_devices(OPENVINO):
        return "the provider of this build computes the float graph in float32, which is slower"
    if "amx_bf16" not in processor_features():
        return "the float graph is faster there only on a processor with AMX"
    return None


def vision_graph(manifest: Manifest, variant: str, image_size: int) -> Graph | None:
    """Return facts about a variant's own vision encoder for OpenVINO; None if it has none."""
    own = manifest.variants[variant].per_provider.get("openvino", ProviderGraphs())
    file = own.vision_encoder.get(str(image_size))
    return manifest.graphs[file] if file else None
