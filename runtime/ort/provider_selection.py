"""What runs where: what a caller asks for, and a provider for every graph.

Asked for a provider that it lacks, ONNX Runtime only warns and runs on the CPU. Nothing here falls
back like that: what was asked for and cannot be had is an error.
"""

import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Final

from fastvlm_onnx.errors import InputError, ProviderError
from fastvlm_onnx.names import DECODER, PREFILL, PROJECTOR, VISION_ENCODER
from fastvlm_onnx.runtime.ort.providers import (
    CPU,
    CUDA,
    PROVIDERS,
    ProviderOptions,
    installed_providers,
    resolve,
    short_name,
)

Providers = (
    str
    | Mapping[str, str | tuple[str, ProviderOptions]]
    | Sequence[str | tuple[str, ProviderOptions]]
)
"""What a caller may ask for: a name, `vision=coreml,decoder=cpu` or the mapping of it, or ONNX
Runtime's own list."""

GRAPHS: Final = (VISION_ENCODER, PROJECTOR, PREFILL, DECODER)
# What `vision=...` and `decoder=...` stand for; a graph may also be named itself.
GRAPH_GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    "vision": (VISION_ENCODER, PROJECTOR),
    DECODER: (DECODER, PREFILL),
    VISION_ENCODER: (VISION_ENCODER,),
    PROJECTOR: (PROJECTOR,),
}


@dataclass(frozen=True)
class Rule:
    """What `auto` does, where the provider is there and the variant is one of these.

    Attributes:
        precisions: any when empty.
    """

    provider: str
    graphs: tuple[str, ...]
    precisions: tuple[str, ...]
    reason: str


BFLOAT16_CAPABILITY: Final = 8.0  # of cards that compute in it
# Variants whose decoder the CPU has no kernels for.
NOT_ON_CPU: Final = ("bf16",)
# The first that fits decides, for each graph by itself.
AUTO: Final = (
    Rule(
        "cuda",
        (VISION_ENCODER, PROJECTOR),
        ("bf16", "fp16", "int4_cuda"),
        "every operator has a float16 kernel there",
    ),
    Rule(
        "cuda",
        (PREFILL, DECODER),
        ("bf16", "fp16", "int4_cuda"),
        "its attention has kernels for keys and values in 16 bits, none for float32",
    ),
    Rule(
        "coreml",
        (VISION_ENCODER, PROJECTOR),
        ("coreml",),
        "float16 in fixed shapes is what the Neural Engine takes, whole",
    ),
    Rule(
        "mlx",
        (PREFILL, DECODER),
        ("coreml",),
        "CoreML takes no decoder; this plugin does, where it is installed",
    ),
    Rule("cpu", GRAPHS, (), "runs every graph but bf16's"),
)


@dataclass(frozen=True)
class Choice:
    """What one graph is to run on.

    Attributes:
        ep: ONNX Runtime's name.
        options: all that are set, ours and the caller's.
        others: providers that take what `ep` leaves, before the CPU does.
        reason: why, when nobody named it.
    """

    ep: str
    options: ProviderOptions = field(default_factory=dict)
    others: tuple[tuple[str, ProviderOptions], ...] = ()
    reason: str | None = None

    @property
    def name(self) -> str:
        """The short name, where it has one."""
        return short_name(self.ep)

    @property
    def memory(self) -> str:
        """Where tensors live between runs: "cpu" or "cuda"."""
        provider = PROVIDERS.get(self.name)
        return provider.memory if provider else "cpu"


def parse(providers: Providers, options: ProviderOptions | None = None) -> dict[str, Choice]:
    """What was asked for by name, by graph; graphs that are left to `auto` are missing.

    Args:
        providers: see `Providers`.
        options: for every provider asked for, but the CPU.

    Raises:
        ProviderError: a provider is unknown or not installed.
        InputError: a graph is unknown, or options are given that nothing takes.
    """
    asked: dict[str, Choice] = {}
    if isinstance(providers, str):
        providers = _split(providers)
    if isinstance(providers, Mapping):
        # A group first, then what is named more exactly.
        for key in sorted(providers, key=lambda key: -len(GRAPH_GROUPS.get(key, ()))):
            if key not in GRAPH_GROUPS:
                raise InputError(
                    f"graph {key!r} is unknown; expected one of {', '.join(GRAPH_GROUPS)}."
                )
            for graph in GRAPH_GROUPS[key]:
                asked.pop(graph, None)
                if providers[key] != "auto":
                    asked[graph] = _choice([providers[key]])
    elif list(providers) != ["auto"]:
        if not providers:
            raise InputError("no provider is named; expected auto, or one or more.")
        asked = dict.fromkeys(GRAPHS, _choice(providers))
    if options:
        if all(choice.ep == CPU for choice in asked.values()):
            raise InputError(
                f"provider options {', '.join(options)} are given, and no provider that takes "
                "them; name one, like cuda."
            )
        asked = {
            graph: choice
            if choice.ep == CPU
            else replace(choice, options={**choice.options, **options})
            for graph, choice in asked.items()
        }
    return asked


def _split(text: str) -> Mapping[str, str] | Sequence[str]:
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


def _choice(chain: Sequence[str | tuple[str, ProviderOptions]]) -> Choice:
    """The first is what was asked for; the others take what it leaves."""
    resolved = []
    for entry in chain:
        name, given = (entry, {}) if isinstance(entry, str) else entry
        ep = resolve(name)
        provider = PROVIDERS.get(short_name(ep))
        ours = provider.options if provider else {}
        resolved.append((ep, {**ours, **{k: str(v) for k, v in given.items()}}))
    (ep, options), *others = resolved
    return Choice(ep, options, tuple(other for other in others if other[0] != CPU))


def plan(
    asked: Mapping[str, Choice], precision: str, installed: Collection[str] | None = None
) -> dict[str, Choice]:
    """A choice for every graph of a variant: what was asked for, else the first rule of AUTO.

    Args:
        installed: ONNX Runtime's names; `usable_providers` when None.

    Raises:
        ProviderError: a provider cannot run this variant.
    """
    there = usable_providers() if installed is None else installed
    choices = {graph: asked.get(graph) or _by_rule(graph, precision, there) for graph in GRAPHS}
    if precision in NOT_ON_CPU and CPU in {choices[DECODER].ep, choices[PREFILL].ep}:
        raise ProviderError(
            f"{precision} has no kernels on the CPU; take another variant with --precision, or an "
            "NVIDIA card with --provider cuda."
        )
    return choices


def _by_rule(graph: str, precision: str, installed: Collection[str]) -> Choice:
    for rule in AUTO:
        provider = PROVIDERS[rule.provider]
        fits = not rule.precisions or precision in rule.precisions
        if fits and graph in rule.graphs and provider.ep in installed:
            return Choice(provider.ep, provider.options, reason=rule.reason)
    raise ProviderError(f"ONNX Runtime has {', '.join(installed)}, and not even {CPU}.")


def wanted_precisions(asked: Mapping[str, Choice]) -> tuple[str, ...]:
    """Variants that suit what was asked for, the best first; nothing asked for: what is there."""
    names = [choice.name for choice in asked.values() if choice.ep != CPU]
    if not asked:
        installed = usable_providers()
        names = [rule.provider for rule in AUTO if PROVIDERS[rule.provider].ep in installed]
    wanted = [p for name in names or ["cpu"] for p in _precisions(name)]
    return tuple(dict.fromkeys(wanted))


def _precisions(name: str) -> tuple[str, ...]:
    provider = PROVIDERS.get(name)
    precisions = provider.precisions if provider else ()
    # Where nobody says, the card is taken for one of these years.
    if name == "cuda" and (compute_capability() or BFLOAT16_CAPABILITY) < BFLOAT16_CAPABILITY:
        precisions = tuple(p for p in precisions if p != "bf16")
    return precisions


def usable_providers() -> list[str]:
    """What `auto` may take: the installed providers, without CUDA's where there is no card.

    The wheel for NVIDIA names its provider on any machine; one that is asked for by name and cannot
    start is an error all the same.
    """
    installed = installed_providers()
    if CUDA in installed and compute_capability() is None and not Path("/dev/nvidia0").exists():
        installed.remove(CUDA)
    return installed


@cache
def compute_capability() -> float | None:
    """The first NVIDIA card's; None where there is none, or nobody says."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return float(found.stdout.splitlines()[0])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
