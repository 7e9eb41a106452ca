"""Choose a provider for every graph: the provider that a caller names, or the provider of `auto`.

ONNX Runtime only warns about a provider that it lacks, and runs the graph on the CPU. This module
never falls back in silence: a named provider that is missing is an error.
"""

import logging
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Final

from fastvlm_onnx.errors import InputError, ProviderError
from fastvlm_onnx.names import DECODER, PREFILL, PROJECTOR, VISION_ENCODER
from fastvlm_onnx.package import Graph
from fastvlm_onnx.runtime.ort import openvino
from fastvlm_onnx.runtime.ort.installed import (
    installed_providers,
    is_broken,
    plugin_problems,
    resolve_provider,
)
from fastvlm_onnx.runtime.ort.providers import (
    CPU,
    CUDA,
    OPENVINO,
    PROVIDERS,
    ProviderOptions,
    short_name,
)
from fastvlm_onnx.variants import (
    VARIANTS,
    variants_for_provider,
    variants_for_target,
    variants_with_vision,
    variants_without_cpu,
)

log = logging.getLogger("fastvlm_onnx")

NamedProvider = str | tuple[str, ProviderOptions]
Providers = str | Mapping[str, NamedProvider] | Sequence[NamedProvider]
"""The providers that a caller asks for: a name, `vision=coreml,decoder=cpu` as text or as a
mapping, or a list in the form of ONNX Runtime."""

GRAPHS: Final = (VISION_ENCODER, PROJECTOR, PREFILL, DECODER)
# The graphs that `vision=...` and `decoder=...` name; a graph may also be named alone.
GRAPH_GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    "vision": (VISION_ENCODER, PROJECTOR),
    DECODER: (DECODER, PREFILL),
    VISION_ENCODER: (VISION_ENCODER,),
    PROJECTOR: (PROJECTOR,),
}


@dataclass(frozen=True)
class AutoRule:
    """One rule of `auto`.

    Attributes:
        provider: short name of the provider that the rule chooses, where it is installed.
        graphs: the graphs that the rule is for.
        variants: the variants that the rule is for; every variant when empty.
        reason: the reason for the choice, which `doctor` shows.
        reason_against: given the graph that the package has for the provider, returns the reason
            why the provider is not chosen; None if it is chosen.
    """

    provider: str
    graphs: tuple[str, ...]
    variants: tuple[str, ...]
    reason: str
    reason_against: Callable[[Graph | None], str | None] | None = None


# `auto` takes the first rule that fits, for each graph separately.
AUTO_RULES: Final = (
    AutoRule(
        "cuda",
        (VISION_ENCODER, PROJECTOR),
        variants_for_target("cuda"),
        "every operator has a float16 kernel there",
    ),
    AutoRule(
        "cuda",
        (PREFILL, DECODER),
        variants_for_target("cuda"),
        "its attention has kernels for keys and values in 16 bits, none for float32",
    ),
    AutoRule(
        "coreml",
        (VISION_ENCODER, PROJECTOR),
        variants_for_target("coreml"),
        "float16 in fixed shapes is what the Neural Engine takes, whole",
    ),
    AutoRule(
        "mlx",
        (PREFILL, DECODER),
        variants_for_target("coreml"),
        "CoreML takes no decoder; this plugin does, where it is installed",
    ),
    # Never for fp32: OpenVINO computes a float graph in bfloat16 where the processor has it.
    AutoRule(
        "openvino",
        (VISION_ENCODER,),
        variants_with_vision("int8"),
        "its kernels keep tensors in few bits between the products: sooner, and closer to fp32",
        openvino.reason_against,
    ),
    AutoRule("cpu", GRAPHS, (), f"runs every graph but {', '.join(variants_without_cpu())}'s"),
)


@dataclass(frozen=True)
class ProviderChoice:
    """The provider of one graph.

    Attributes:
        ep: ONNX Runtime's name of the provider.
        options: the provider's options, the caller's over the defaults.
        others: providers with their options for the nodes that `ep` leaves, before the CPU.
        reason: the reason why `auto` chose the provider; None for a provider that the caller named.
    """

    ep: str
    options: ProviderOptions = field(default_factory=dict)
    others: tuple[tuple[str, ProviderOptions], ...] = ()
    reason: str | None = None

    @property
    def name(self) -> str:
        """The provider's short name, or ONNX Runtime's name where there is no short name."""
        return short_name(self.ep)

    @property
    def memory(self) -> str:
        """Where tensors live between runs: "cpu" or "cuda"."""
        provider = PROVIDERS.get(self.name)
        return provider.memory if provider else "cpu"


def parse_providers(
    providers: Providers, options: ProviderOptions | None = None
) -> dict[str, ProviderChoice]:
    """Resolve the providers that a caller names.

    Args:
        providers: see `Providers`.
        options: options for every named provider except the CPU.

    Returns:
        A choice for each graph with a named provider. A graph that is left to `auto` is missing.

    Raises:
        ProviderError: a provider is unknown or not installed.
        InputError: a graph is unknown, or no named provider takes the options.
    """
    choices = _named_choices(_split(providers) if isinstance(providers, str) else providers)
    if not options:
        return choices
    if all(choice.ep == CPU for choice in choices.values()):
        raise InputError(
            f"provider options {', '.join(options)} are given, and no provider that takes "
            "them; name one, like cuda."
        )
    return {
        graph: choice
        if choice.ep == CPU
        else replace(choice, options={**choice.options, **options})
        for graph, choice in choices.items()
    }


def _named_choices(
    providers: Mapping[str, NamedProvider] | Sequence[NamedProvider],
) -> dict[str, ProviderChoice]:
    if not isinstance(providers, Mapping):
        if not providers:
            raise InputError("no provider is named; expected auto, or one or more.")
        return {} if list(providers) == ["auto"] else dict.fromkeys(GRAPHS, _resolve(providers))
    choices: dict[str, ProviderChoice] = {}
    # Groups come first, so that a graph that is named alone replaces its group's provider.
    for key in sorted(providers, key=lambda key: -len(GRAPH_GROUPS.get(key, ()))):
        if key not in GRAPH_GROUPS:
            raise InputError(
                f"graph {key!r} is unknown; expected one of {', '.join(GRAPH_GROUPS)}."
            )
        for graph in GRAPH_GROUPS[key]:
            choices.pop(graph, None)
            if providers[key] != "auto":
                choices[graph] = _resolve([providers[key]])
    return choices


def _split(text: str) -> Mapping[str, str] | Sequence[str]:
    """Split `cuda`, `cuda,cpu` or `vision=coreml,decoder=cpu`."""
    parts = [part.strip() for part in text.split(",")]
    if not any("=" in part for part in parts):
        return parts
    pairs = {}
    for part in parts:
        graph, equals, name = part.partition("=")
        if not equals or not name:
            raise InputError(
                f"provider {text!r}: {part!r} names no graph; expected one for all graphs, or "
                "GRAPH=PROVIDER like vision=coreml,decoder=cpu."
            )
        pairs[graph.strip()] = name.strip()
    return pairs


def _resolve(chain: Sequence[NamedProvider]) -> ProviderChoice:
    """Resolve a list of providers: the first runs the graph, the others take what it leaves."""
    resolved = []
    for entry in chain:
        name, given = (entry, {}) if isinstance(entry, str) else entry
        ep = resolve_provider(name)
        provider = PROVIDERS.get(short_name(ep))
        defaults = provider.options if provider else {}
        resolved.append((ep, {**defaults, **{k: str(v) for k, v in given.items()}}))
    (ep, options), *others = resolved
    return ProviderChoice(ep, options, tuple(other for other in others if other[0] != CPU))


def assign_providers(
    asked: Mapping[str, ProviderChoice],
    variant: str,
    installed: Collection[str] | None = None,
    openvino_vision: Graph | None = None,
) -> dict[str, ProviderChoice]:
    """Give every graph of a variant a provider: the named provider, else the first fitting rule.

    Args:
        asked: the result of `parse_providers`.
        variant: the variant's name.
        installed: ONNX Runtime's names of the installed providers; `usable_providers` when None.
        openvino_vision: facts about the vision encoder that the package has for OpenVINO.

    Raises:
        ProviderError: a provider cannot run this variant.
    """
    usable: Collection[str] = installed or ()
    # Plugins are registered only if a graph is left to `auto`.
    if installed is None and set(GRAPHS) - set(asked):
        usable = usable_providers()
    choices = {
        graph: asked.get(graph) or _by_rule(graph, variant, usable, openvino_vision)
        for graph in GRAPHS
    }
    if variant in variants_without_cpu() and CPU in {choices[DECODER].ep, choices[PREFILL].ep}:
        raise ProviderError(
            f"{variant} has no kernels on the CPU; take another variant with --precision, or an "
            "NVIDIA card with --provider cuda."
        )
    return choices


def _by_rule(
    graph: str, variant: str, installed: Collection[str], openvino_vision: Graph | None
) -> ProviderChoice:
    against = []
    for rule in AUTO_RULES:
        provider = PROVIDERS[rule.provider]
        if graph not in rule.graphs or (rule.variants and variant not in rule.variants):
            continue
        if provider.ep not in installed:
            # A plugin that is installed and cannot be used is not passed over in silence.
            if provider.plugin and (problem := plugin_problems().get(provider.ep)):
                against.append(f"not {rule.provider}: {problem}")
                if is_broken(provider.ep):
                    log.warning("%s", problem)
            continue
        if rule.reason_against and (found := rule.reason_against(openvino_vision)):
            against.append(f"not {rule.provider}: {found}")
            continue
        reason = "; ".join([rule.reason, *against])
        return ProviderChoice(provider.ep, provider.options, reason=reason)
    raise ProviderError(f"ONNX Runtime has {', '.join(installed)}, and not even {CPU}.")


def preferred_variants(
    asked: Mapping[str, ProviderChoice], with_openvino_vision: Collection[str] = ()
) -> tuple[str, ...]:
    """Names of the variants that suit the providers, the best first.

    Args:
        asked: the result of `parse_providers`. When empty, the usable providers count.
        with_openvino_vision: the variants that have a vision encoder for OpenVINO.
    """
    if not asked:
        usable = usable_providers()
        preferred = [
            variant
            for rule in AUTO_RULES
            if PROVIDERS[rule.provider].ep in usable
            for variant in variants_for_provider(rule.provider)
            if not rule.variants or variant in rule.variants
        ]
    else:
        names = [choice.name for choice in asked.values() if choice.ep != CPU]
        preferred = [v for name in names or ["cpu"] for v in variants_for_provider(name)]
        others = {choice.ep for graph, choice in asked.items() if graph in (PREFILL, DECODER)}
        if OPENVINO in {choice.ep for choice in asked.values()} - others:
            best = [v for v in variants_for_provider("cpu") if v in with_openvino_vision]
            preferred = best + preferred
    fitting = [v for v in preferred if "cuda" not in VARIANTS[v].providers or _card_computes(v)]
    return tuple(dict.fromkeys(fitting))


def _card_computes(variant: str) -> bool:
    """Whether the NVIDIA card computes in the variant's number format; True when unknown."""
    least, capability = VARIANTS[variant].least_compute_capability, compute_capability()
    return least is None or capability is None or capability >= least


def usable_providers() -> list[str]:
    """ONNX Runtime's names of the providers that `auto` may choose.

    The wheel for NVIDIA names CUDA on every machine, so CUDA counts only where there is a card.
    """
    installed = installed_providers()
    if CUDA in installed and compute_capability() is None and not Path("/dev/nvidia0").exists():
        installed.remove(CUDA)
    return installed


@cache
def compute_capability() -> float | None:
    """The compute capability of the first NVIDIA card; None without a card or nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return float(found.stdout.splitlines()[0])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
