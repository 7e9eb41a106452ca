"""Plugin providers: libraries that ONNX Runtime loads beside its own providers.

A wheel `onnxruntime-ep-NAME` brings a module `onnxruntime_ep_NAME`, which tells its library's path
and its providers' names. These modules are found among the installed modules, and each library is
registered once in a process. The reason why a plugin does not load is kept for a caller who names
its provider.
"""

import importlib
import pkgutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from fastvlm_onnx.errors import ProviderError
from fastvlm_onnx.runtime.ort.providers import PROVIDERS, import_onnxruntime, in_one_line

MODULE_PREFIX: Final = "onnxruntime_ep_"
LEAST_ONNXRUNTIME: Final = "1.23"  # the first that the plugins' wheels allow
_lock = threading.RLock()


@dataclass(frozen=True)
class Plugin:
    """An installed plugin module.

    Attributes:
        module: the module's name.
        eps: ONNX Runtime's names of the plugin's providers.
        problem: the reason why the plugin cannot be used, with the remedy; None if it is
            registered.
    """

    module: str
    eps: tuple[str, ...]
    problem: str | None = None

    @property
    def wheel(self) -> str:
        """The name of the wheel that brings the module, with its version where it is known."""
        name = self.module.replace("_", "-")
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            return name


def installed_plugins() -> tuple[Plugin, ...]:
    """Find the plugin modules and register their libraries; the first call in a process does it.

    A library is left out if the build of ONNX Runtime, or a library that the caller registered,
    has a provider of the same name.
    """
    with _lock:
        return _find_and_register()


@cache
def _find_and_register() -> tuple[Plugin, ...]:
    names = sorted(found.name for found in pkgutil.iter_modules())
    return tuple(_register_module(name) for name in names if name.startswith(MODULE_PREFIX))


def _register_module(name: str) -> Plugin:
    # A module that cannot be imported does not tell its providers; the table knows some.
    eps = tuple(provider.ep for provider in PROVIDERS.values() if provider.plugin == name)
    wheel = name.replace("_", "-")
    # Anything may be raised by another project's module.
    try:
        module = importlib.import_module(name)
        eps = tuple(module.get_ep_names())
        if not set(eps) & set(import_onnxruntime().get_available_providers()):
            _register(eps[0], module.get_library_path())
    except Exception as error:
        return Plugin(
            name,
            eps,
            f"the plugin {name} cannot be loaded ({in_one_line(error)}); run "
            f"`pip install -U 'onnxruntime>={LEAST_ONNXRUNTIME}' {wheel}`, or "
            f"`pip uninstall {wheel}`.",
        )
    return Plugin(name, eps)


def register_library(name: str, path: str | Path) -> None:
    """Make a plugin provider known to ONNX Runtime; a library is registered once in a process.

    Args:
        name: ONNX Runtime's name for the library, as a rule that of its provider.
        path: the library's file.

    Raises:
        ProviderError: the file is no provider library, or this ONNX Runtime takes no plugins.
    """
    if not _takes_plugins():
        raise ProviderError(
            f"ONNX Runtime {import_onnxruntime().__version__} takes no plugin providers; run "
            f"`pip install -U 'onnxruntime>={LEAST_ONNXRUNTIME}'`."
        )
    try:
        _register(name, path)
    except Exception as error:
        raise ProviderError(
            f"{path}: cannot be registered as {name} ({in_one_line(error)}); expected the "
            "library of a plugin provider made for this ONNX Runtime."
        ) from None


def _register(name: str, path: str | Path) -> None:
    if not _takes_plugins():
        raise RuntimeError(f"ONNX Runtime {import_onnxruntime().__version__} takes no plugins")
    # A library that is registered under two names offers each device twice.
    library = str(Path(path).resolve())
    with _lock:
        if name not in _registered() and library not in _registered().values():
            import_onnxruntime().register_execution_provider_library(name, str(path))
            _registered()[name] = library


def _takes_plugins() -> bool:
    return hasattr(import_onnxruntime(), "register_execution_provider_library")


@cache
def _registered() -> dict[str, str]:
    # ONNX Runtime does not list its registered plugins, and refuses a name that comes twice.
    return {}


def plugin_devices(ep: str) -> list[Any]:
    """Return the devices that a plugin provider offers; empty for a provider of the build."""
    ort = import_onnxruntime()
    if not hasattr(ort, "get_ep_devices"):
        return []
    return [device for device in ort.get_ep_devices() if device.ep_name == ep]


def chosen_devices(ep: str, options: dict[str, str]) -> tuple[Sequence[Any], dict[str, str]]:
    """Choose a plugin's devices by the option `device_type`, which plugins themselves ignore.

    Returns:
        The devices, and the options without `device_type`.

    Raises:
        ProviderError: the plugin has no device of this type.
    """
    devices = plugin_devices(ep)
    others = dict(options)
    device_type = others.pop("device_type", None)
    if device_type is None:
        return devices, others
    chosen = [device for device in devices if device.device.type.name == device_type]
    if not chosen:
        offered = ", ".join(sorted({device.device.type.name for device in devices}))
        raise ProviderError(f"device_type is {device_type}, and the plugin offers {offered}")
    return chosen, others


def provider_version(ep: str) -> str:
    """Return a plugin provider's version, or ONNX Runtime's for a provider of the build."""
    versions = (device.ep_metadata.get("version") for device in plugin_devices(ep))
    return next((version for version in versions if version), import_onnxruntime().__version__)
