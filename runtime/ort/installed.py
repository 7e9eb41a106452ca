"""The providers that can be had on this machine, and the reason where one cannot."""

from fastvlm_onnx.errors import ProviderError
from fastvlm_onnx.runtime.ort.hardware import processor
from fastvlm_onnx.runtime.ort.plugins import installed_plugins, plugin_devices
from fastvlm_onnx.runtime.ort.providers import (
    OPENVINO,
    PROVIDERS,
    import_onnxruntime,
    short_name,
)

# The plugin offers no device on processors of other makers. This wheel does, and replaces
# onnxruntime with an older version (docs/providers.md has the figures).
OPENVINO_WHEEL = "onnxruntime-openvino==1.24.1"


def installed_providers() -> list[str]:
    """Return ONNX Runtime's names of the providers in this build and of plugins with a device.

    Plugin modules are found and registered by the first call.
    """
    plugins = {ep for plugin in installed_plugins() for ep in plugin.eps}
    ort = import_onnxruntime()
    devices = ort.get_ep_devices() if hasattr(ort, "get_ep_devices") else []
    offered = dict.fromkeys(device.ep_name for device in devices)
    build = [ep for ep in ort.get_available_providers() if ep not in plugins or ep in offered]
    # A dot marks a meta device, which chooses among the devices of the provider before the dot.
    return [ep for ep in dict.fromkeys([*build, *offered]) if "." not in ep]


def described_providers() -> list[str]:
    """Return the names of `installed_providers`; a plugin's name is followed by its devices."""
    described = []
    for ep in installed_providers():
        types = [device.device.type.name for device in plugin_devices(ep)]
        is_plugin = any(ep in plugin.eps for plugin in installed_plugins())
        described.append(f"{ep} ({', '.join(dict.fromkeys(types))})" if is_plugin and types else ep)
    return described


def plugin_problems() -> dict[str, str]:
    """Return, by ONNX Runtime's name, why a provider of an installed plugin cannot be had."""
    installed = installed_providers()
    problems = {}
    for plugin in installed_plugins():
        for ep in plugin.eps:
            if ep not in installed:
                problems[ep] = plugin.problem or (
                    f"the plugin {plugin.wheel} offers no device on {processor()}{_instead(ep)}."
                )
    return problems


def is_broken(ep: str) -> bool:
    """Whether a plugin of this provider is installed and does not load."""
    return any(ep in plugin.eps and plugin.problem for plugin in installed_plugins())


def _instead(ep: str) -> str:
    if ep != OPENVINO:
        return ""
    return (
        f"; `pip uninstall onnxruntime && pip install {OPENVINO_WHEEL}` has an OpenVINO for "
        "processors that are not Intel's, with an older and slower CPU provider "
        "(docs/providers.md)"
    )


def resolve_provider(name: str) -> str:
    """Return ONNX Runtime's name of an installed provider.

    Raises:
        ProviderError: the name is unknown, or the provider is not installed, or its plugin does not
            load or offers no device.
    """
    provider = PROVIDERS.get(name.lower()) or PROVIDERS.get(short_name(name))
    ep = provider.ep if provider else name
    # Plugins are registered only for a provider that the build lacks.
    if ep in import_onnxruntime().get_available_providers():
        return ep
    installed = installed_providers()
    if ep in installed:
        return ep
    if problem := plugin_problems().get(ep):
        raise ProviderError(f"{ep} cannot be had: {problem}")
    if provider is None and not name.endswith("ExecutionProvider"):
        raise ProviderError(
            f"provider {name!r} is unknown; expected auto, {', '.join(PROVIDERS)}, or ONNX "
            "Runtime's name of a provider."
        )
    hint = f"run `{provider.install}`." if provider else "install the package that brings it."
    raise ProviderError(
        f"{ep} is not in this ONNX Runtime, which has {', '.join(described_providers())}; {hint}"
    )
