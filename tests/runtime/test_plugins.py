"""Plugin providers: found among the installed modules, registered once. The modules are fakes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import run

from fastvlm_onnx import ProviderError
from fastvlm_onnx.runtime.ort import installed, plugins, provider_selection
from fastvlm_onnx.runtime.ort.openvino import options_with_threads
from fastvlm_onnx.runtime.ort.providers import CPU, OPENVINO, PROVIDERS

MadeModule = Callable[..., Path]


@pytest.fixture
def fake_module(tmp_path: Path) -> MadeModule:
    """Write a fake plugin module and return the folder for sys.path; its library is no library."""

    def make(name: str = "onnxruntime_ep_fake", ep: str = "FakeExecutionProvider") -> Path:
        library = tmp_path / "libfake.so"
        library.write_bytes(b"no library")
        (tmp_path / f"{name}.py").write_text(
            f"def get_library_path(): return {str(library)!r}\n"
            f"def get_ep_names(): return [{ep!r}]\n"
        )
        return tmp_path

    return make


class FakeOnnxRuntime(SimpleNamespace):
    """ONNX Runtime as far as plugins need it; `offers` are the devices of a registered library."""

    __version__ = "1.32.0"

    def __init__(self, *offers: str) -> None:
        super().__init__(offers=offers, registered=[])

    def register_execution_provider_library(self, name: str, path: str) -> None:
        self.registered.append((name, path))

    def get_ep_devices(self) -> list[Any]:
        return [
            SimpleNamespace(
                ep_name=name,
                ep_metadata={"version": "9.9"},
                device=SimpleNamespace(type=SimpleNamespace(name="CPU")),
            )
            for name in (self.offers if self.registered else ())
        ]

    def get_available_providers(self) -> list[str]:
        return [CPU]


@pytest.fixture
def fake_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FakeOnnxRuntime]]:
    def pretend(*offers: str) -> FakeOnnxRuntime:
        fake = FakeOnnxRuntime(*offers)
        for module in (plugins, installed):
            monkeypatch.setattr(module, "import_onnxruntime", lambda: fake)
        monkeypatch.setattr(plugins, "_registered", lambda held={}: held)
        for name in [name for name in sys.modules if name.startswith(plugins.MODULE_PREFIX)]:
            monkeypatch.delitem(sys.modules, name)
        plugins._find_and_register.cache_clear()
        return fake

    yield pretend
    plugins._find_and_register.cache_clear()


def test_a_plugin_module_is_found_and_registered_once_by_any_number_of_threads(
    fake_module: MadeModule,
    fake_onnxruntime: Callable[..., FakeOnnxRuntime],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(fake_module())
    ort = fake_onnxruntime("FakeExecutionProvider", "FakeExecutionProvider.AUTO")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: installed.installed_providers(), range(32)))
    named = [name for name, path in ort.registered if path.endswith("libfake.so")]
    assert named == ["FakeExecutionProvider"]
    # The meta device, which chooses among devices, is no provider of its own.
    assert found[0] == [CPU, "FakeExecutionProvider"]
    assert installed.resolve_provider("FakeExecutionProvider") == "FakeExecutionProvider"
    assert "FakeExecutionProvider (CPU)" in installed.described_providers()
    assert plugins.provider_version("FakeExecutionProvider") == "9.9"


def test_a_library_that_the_caller_registered_is_not_registered_again(
    fake_module: MadeModule,
    fake_onnxruntime: Callable[..., FakeOnnxRuntime],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = fake_module()
    monkeypatch.syspath_prepend(folder)
    ort = fake_onnxruntime()
    plugins.register_library("Mine", folder / "libfake.so")
    plugins.register_library("Mine", folder / "other.so")
    plugins.installed_plugins()
    assert [path for _, path in ort.registered if "fake" in path] == [str(folder / "libfake.so")]


def test_openvinos_plugin_without_a_device_names_the_wheel_for_other_processors(
    fake_module: MadeModule,
    fake_onnxruntime: Callable[..., FakeOnnxRuntime],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(fake_module("onnxruntime_ep_openvino", OPENVINO))
    fake_onnxruntime()
    with pytest.raises(ProviderError, match=r"offers no device on .*onnxruntime-openvino==1\.24"):
        installed.resolve_provider("openvino")
    assert OPENVINO not in installed.installed_providers()
    choice = provider_selection.assign_providers({}, "fast", [CPU])["vision_encoder"]
    assert choice.ep == CPU
    assert "not openvino: the plugin onnxruntime-ep-openvino" in str(choice.reason)


def test_a_plugin_that_does_not_load_is_one_line_with_the_wheel_to_install(
    fake_module: MadeModule, package: Path
) -> None:
    path = os.pathsep.join([str(fake_module()), os.environ.get("PYTHONPATH", "")])
    asked = ("--model", package, "--provider", "FakeExecutionProvider")
    done = run("generate", "x.png", "Hi", *asked, PYTHONPATH=path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "the plugin onnxruntime_ep_fake cannot be loaded (" in line
    assert "onnxruntime-ep-fake`, or `pip uninstall onnxruntime-ep-fake`" in line
    shown = run("doctor", PYTHONPATH=path)
    assert shown.returncode == 0
    assert "problem           the plugin onnxruntime_ep_fake cannot be loaded" in shown.stdout


def test_auto_goes_on_without_a_broken_plugin_and_warns(
    tmp_path: Path, variants_package: Path
) -> None:
    (tmp_path / "onnxruntime_ep_openvino.py").write_text("raise OSError('libtbb is missing')\n")
    code = (
        "import logging\n"
        "from fastvlm_onnx.runtime.ort.provider_selection import assign_providers\n"
        "logging.basicConfig()\n"
        "choice = assign_providers({}, 'fast')['vision_encoder']\n"
        "print(choice.ep, choice.reason)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    if done.stdout.startswith(OPENVINO):
        pytest.skip("this build of ONNX Runtime has OpenVINO's provider, and needs no plugin")
    assert done.stdout.startswith(CPU)
    assert "libtbb is missing" in done.stdout
    assert done.stderr.count("onnxruntime_ep_openvino cannot be loaded (libtbb is missing)") == 1


def test_no_plugin_is_looked_for_if_the_build_has_the_named_provider() -> None:
    code = (
        "import fastvlm_onnx.runtime.ort.plugins as plugins\n"
        "from fastvlm_onnx.runtime.ort import provider_selection as selection\n"
        "selection.assign_providers(selection.parse_providers('cpu'), 'fast')\n"
        "print(plugins._find_and_register.cache_info().currsize)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "0\n", done.stderr


def test_the_plugins_of_the_table_have_the_names_of_modules() -> None:
    named = [provider.plugin for provider in PROVIDERS.values() if provider.plugin]
    assert "onnxruntime_ep_openvino" in named
    assert all(name.startswith(plugins.MODULE_PREFIX) for name in named)


# --- OpenVINO's options --------------------------------------------------------------------------


def test_threads_reach_openvino_and_the_callers_load_config_wins() -> None:
    found = options_with_threads({"device_type": "CPU"}, 3)
    assert json.loads(found["load_config"]) == {"CPU": {"INFERENCE_NUM_THREADS": 3}}
    given = {"load_config": '{"CPU": {"INFERENCE_NUM_THREADS": 1}, "GPU": {"A": "B"}}'}
    found = options_with_threads(given, 3)
    assert json.loads(found["load_config"]) == json.loads(given["load_config"])
    assert "CPU" in json.loads(options_with_threads({}, 0)["load_config"])


def test_options_of_the_older_openvino_provider_reach_the_plugin() -> None:
    given = {"device_type": "CPU", "precision": "f32", "num_of_threads": "1", "cache_dir": "x"}
    found = options_with_threads(given, 2)
    assert set(found) == {"device_type", "load_config"}
    assert json.loads(found["load_config"])["CPU"] == {
        "INFERENCE_NUM_THREADS": "1",
        "INFERENCE_PRECISION_HINT": "f32",
        "CACHE_DIR": "x",
    }


@pytest.mark.parametrize("given", ["no JSON", "[]", '{"CPU": 3}'])
def test_a_load_config_that_is_no_object_is_left_to_openvino(given: str) -> None:
    assert options_with_threads({"load_config": given}, 2) == {"load_config": given}
