"""Which provider runs which graph. Hardware that this machine lacks is faked."""

import logging
import os
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import refusal

import fastvlm_onnx
from fastvlm_onnx import InputError, ProviderError
from fastvlm_onnx.names import DECODER, PREFILL, PROJECTOR, VISION_ENCODER
from fastvlm_onnx.package import read_manifest
from fastvlm_onnx.runtime.loading import choose_variant
from fastvlm_onnx.runtime.ort import (
    hardware,
    installed,
    plugins,
    provider_selection,
    providers,
    session,
)
from fastvlm_onnx.runtime.ort.provider_selection import (
    GRAPHS,
    ProviderChoice,
    assign_providers,
    parse_providers,
)
from fastvlm_onnx.runtime.ort.providers import COREML, CPU, CUDA
from fastvlm_onnx.runtime.ort.session import GraphSession

OPENVINO = "OpenVINOExecutionProvider"
MLX = "MLXExecutionProvider"
# Compiled into every build on Linux, and takes no node of these graphs.
AZURE = "AzureExecutionProvider"


@pytest.fixture
def pretend_installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that ONNX Runtime has these providers beside the CPU."""

    def pretend(*names: str) -> None:
        for module in (installed, provider_selection):
            monkeypatch.setattr(module, "installed_providers", lambda: [*names, CPU])
        monkeypatch.setattr(provider_selection, "compute_capability", lambda: 9.0)

    return pretend


# --- named providers -----------------------------------------------------------------------------


def test_one_provider_name_is_for_all_graphs(pretend_installed: Callable[..., None]) -> None:
    pretend_installed(CUDA)
    asked = parse_providers("cuda")
    assert list(asked) == list(GRAPHS)
    assert {choice.ep for choice in asked.values()} == {CUDA}
    assert asked[DECODER].options["arena_extend_strategy"] == "kSameAsRequested"
    assert asked[DECODER].memory == "cuda"


@pytest.mark.parametrize(
    "given", ["vision=coreml,decoder=cpu", {"vision": "coreml", "decoder": "cpu"}]
)
def test_each_graph_may_have_its_own_provider(
    pretend_installed: Callable[..., None], given: str | dict[str, str]
) -> None:
    pretend_installed(COREML)
    eps = {graph: choice.ep for graph, choice in parse_providers(given).items()}
    assert eps == {VISION_ENCODER: COREML, PROJECTOR: COREML, PREFILL: CPU, DECODER: CPU}


def test_a_graph_named_alone_replaces_the_provider_of_its_group(
    pretend_installed: Callable[..., None],
) -> None:
    pretend_installed(COREML)
    asked = parse_providers("projector=cpu,vision=coreml")
    assert (asked[VISION_ENCODER].ep, asked[PROJECTOR].ep) == (COREML, CPU)
    assert DECODER not in asked
    assert PROJECTOR not in parse_providers("vision=coreml,projector=auto")


def test_a_provider_list_in_the_form_of_onnx_runtime(
    pretend_installed: Callable[..., None],
) -> None:
    pretend_installed(CUDA, OPENVINO)
    given = [(CUDA, {"device_id": 1, "use_tf32": "0"}), "OpenVINOExecutionProvider", CPU]
    choice = parse_providers(given)[DECODER]
    assert choice.ep == CUDA
    assert choice.options["device_id"] == "1"
    assert choice.options["cudnn_conv_algo_search"] == "HEURISTIC"
    assert choice.others == ((OPENVINO, {"device_type": "CPU"}),)


def test_the_callers_provider_options_replace_the_defaults(
    pretend_installed: Callable[..., None],
) -> None:
    pretend_installed(COREML)
    asked = parse_providers("vision=coreml,decoder=cpu", {"MLComputeUnits": "ALL"})
    assert asked[VISION_ENCODER].options["MLComputeUnits"] == "ALL"
    assert asked[VISION_ENCODER].options["ModelFormat"] == "MLProgram"
    assert not asked[DECODER].options


@pytest.mark.parametrize(
    ("given", "options", "words"),
    [
        ("abacus", None, "'abacus' is unknown; expected auto, cpu, cuda"),
        ("cuda", None, 'CUDAExecutionProvider is not in this .*fastvlm-onnx\\[cuda\\]"'),
        ("NoneSuchExecutionProvider", None, "NoneSuchExecutionProvider is not in this"),
        ("vision=coreml", None, "CoreMLExecutionProvider is not in this"),
        ("hearing=cpu", None, "'hearing' is unknown; expected one of vision, decoder"),
        ("vision=", None, "'vision=' names no graph"),
        ("vision=cpu,cpu", None, "'cpu' names no graph"),
        ("cpu", {"device_id": "0"}, "options device_id are given, and no provider"),
        ("auto", {"device_id": "0"}, "options device_id are given, and no provider"),
        ([], None, "no provider is named"),
    ],
)
def test_a_provider_that_cannot_be_had_is_refused(given: Any, options: Any, words: str) -> None:
    with pytest.raises((InputError, ProviderError), match=words):
        parse_providers(given, options)


# --- auto ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("installed", "precision", "expected"),
    [
        ([CPU], "fast", [CPU] * 4),
        ([CUDA, CPU], "bf16", [CUDA] * 4),
        ([CUDA, CPU], "int4_cuda", [CUDA] * 4),
        # int8 products have no kernel there, and float32 keys and values none.
        ([CUDA, CPU], "int8", [CPU] * 4),
        ([CUDA, CPU], "fp32", [CPU] * 4),
        ([COREML, CPU], "coreml", [COREML, COREML, CPU, CPU]),
        (
            [COREML, "MLXExecutionProvider", CPU],
            "coreml",
            [COREML] * 2 + ["MLXExecutionProvider"] * 2,
        ),
        ([COREML, CPU], "fp32", [CPU] * 4),
    ],
)
def test_auto_assigns_a_provider_to_every_graph_of_a_variant(
    installed: list[str], precision: str, expected: list[str]
) -> None:
    choices = assign_providers({}, precision, installed)
    assert [choices[graph].ep for graph in GRAPHS] == expected
    assert all(choice.reason for choice in choices.values())


def test_auto_leaves_a_named_provider(pretend_installed: Callable[..., None]) -> None:
    pretend_installed(CUDA)
    choices = assign_providers(parse_providers("vision=cpu"), "fp16", [CUDA, CPU])
    assert [choices[graph].ep for graph in GRAPHS] == [CPU, CPU, CUDA, CUDA]


@pytest.mark.parametrize(
    ("installed", "asked", "variants", "expected"),
    [
        ([], "auto", ["fp32", "int8", "fast"], "fast"),
        ([], "auto", ["fp32"], "fp32"),
        ([], "cpu", ["fp32", "int4"], "int4"),
        ([CUDA], "auto", ["fp16", "int8", "bf16"], "bf16"),
        ([CUDA], "auto", ["int8"], "int8"),
        ([CUDA], "cuda", ["fp16", "int8"], "fp16"),
        ([COREML], "vision=coreml,decoder=cpu", ["int4", "coreml"], "coreml"),
        ([OPENVINO], "openvino", ["int8", "fp32"], "fp32"),
    ],
)
def test_the_best_variant_for_the_provider_is_chosen(
    pretend_installed: Callable[..., None],
    package: Path,
    installed: list[str],
    asked: str,
    variants: list[str],
    expected: str,
) -> None:
    pretend_installed(*installed)
    manifest = read_manifest(package)
    only = manifest.variants["fp32"]
    object.__setattr__(manifest, "variants", dict.fromkeys(variants, only))
    assert choose_variant(manifest, None, package, parse_providers(asked)) == expected


@pytest.mark.parametrize(
    ("capability", "variants", "expected"),
    [
        (9.0, ["int8", "fp16", "bf16"], "bf16"),
        (7.5, ["int8", "fp16", "bf16"], "fp16"),
        # The wheel for NVIDIA on a machine without a card.
        (None, ["int8", "fp16", "bf16"], "int8"),
    ],
)
def test_the_best_variant_for_the_nvidia_card_is_chosen(
    pretend_installed: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    package: Path,
    capability: float | None,
    variants: list[str],
    expected: str,
) -> None:
    if capability is None and Path("/dev/nvidia0").exists():
        pytest.skip("there is an NVIDIA card here")
    pretend_installed(CUDA)
    monkeypatch.setattr(provider_selection, "compute_capability", lambda: capability)
    manifest = read_manifest(package)
    object.__setattr__(manifest, "variants", dict.fromkeys(variants, manifest.variants["fp32"]))
    assert choose_variant(manifest, None, package, {}) == expected
    on_card = capability is not None
    assert assign_providers({}, expected)[DECODER].ep == (CUDA if on_card else CPU)


def test_a_package_without_a_variant_for_it_names_the_command(
    pretend_installed: Callable[..., None], package: Path
) -> None:
    pretend_installed(CUDA)
    with pytest.raises(InputError, match="no variant for cuda, only fp32; add one"):
        fastvlm_onnx.load(package, providers="cuda")


# --- placement -----------------------------------------------------------------------------------


def test_placement_is_read_from_the_session(package: Path) -> None:
    model = fastvlm_onnx.load(package, record_placement=True)
    placement = model.sessions[DECODER].placement
    if placement is None:
        pytest.skip("this ONNX Runtime does not say where nodes run")
    assert list(placement) == [CPU]
    assert placement[CPU]["GroupQueryAttention"] == model.manifest.decoder.num_hidden_layers


def test_a_provider_that_takes_no_node_is_an_error(package: Path) -> None:
    if AZURE not in installed.installed_providers():
        pytest.skip(f"this ONNX Runtime has no {AZURE}")
    if not hasattr(
        providers.import_onnxruntime().InferenceSession, "get_provider_graph_assignment_info"
    ):
        pytest.skip("this ONNX Runtime does not say where nodes run")
    with pytest.raises(ProviderError, match=f"{AZURE} took none of its"):
        fastvlm_onnx.load(package, providers=AZURE)


class FakeSession:
    """A session as a provider would leave it that this machine lacks."""

    def __init__(self, *, started: bool, placement: dict[str, Counter[str]] | None = None) -> None:
        self.started, self.placement = started, placement

    def get_providers(self) -> list[str]:
        return [CUDA, CPU] if self.started else [CPU]


@pytest.fixture
def open_fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., GraphSession]:
    def open_fake(fake: FakeSession) -> GraphSession:
        monkeypatch.setattr(GraphSession, "_open", lambda self, options, path: fake)
        monkeypatch.setattr(session, "placement_of", lambda opened: opened.placement)
        monkeypatch.setattr(session, "preload_cuda", lambda: None)
        return GraphSession(Path("decoder.bf16.onnx"), ProviderChoice(CUDA))

    return open_fake


def test_a_provider_whose_libraries_are_missing_is_an_error(
    open_fake: Callable[..., GraphSession],
) -> None:
    with pytest.raises(ProviderError, match="could not be started, as a rule because"):
        open_fake(FakeSession(started=False))


def test_a_provider_that_takes_a_part_is_a_warning_with_the_rest(
    open_fake: Callable[..., GraphSession], caplog: pytest.LogCaptureFixture
) -> None:
    placement = {CUDA: Counter(MatMul=8), CPU: Counter(Shape=2, Gather=1)}
    with caplog.at_level(logging.WARNING, "fastvlm_onnx"):
        open_fake(FakeSession(started=True, placement=placement))
    assert "took 8 of 11 nodes; on the CPU: 2 Shape, 1 Gather" in caplog.text


def test_a_plugin_that_is_no_library_is_refused(tmp_path: Path) -> None:
    if not hasattr(providers.import_onnxruntime(), "register_execution_provider_library"):
        pytest.skip("this ONNX Runtime takes no plugins")
    library = tmp_path / "libnothing.so"
    library.write_bytes(b"nothing")
    with pytest.raises(ProviderError, match=r"libnothing.so: cannot be registered as Mine \("):
        plugins.register_library("Mine", library)
    text = refusal("generate", "x.png", "Hi", "--provider-library", f"Mine={library}")
    assert "cannot be registered" in text


# --- a provider that fails -----------------------------------------------------------------------


def test_memory_that_ends_in_an_answer_is_one_line_and_the_next_answer_comes(
    package: Path, picture: Path
) -> None:
    if sys.platform != "linux":
        pytest.skip("the limit on memory is Linux's")
    program = textwrap.dedent(
        f"""
        import resource
        import numpy
        import fastvlm_onnx

        pixel_values = numpy.zeros((256, 3, 256, 256), numpy.float32)
        model = fastvlm_onnx.load({str(package)!r}, threads=1)
        expected = model.generate({str(picture)!r}, "Hi", max_new_tokens=3).token_ids
        size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        limits = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (size + 1_000_000, limits[1]))
        try:
            model.image_encoder.encode_pixel_values(pixel_values)
        except fastvlm_onnx.ProviderError as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        assert model.generate({str(picture)!r}, "Hi", max_new_tokens=3).token_ids == expected
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "failed while running it" in done.stdout


def test_a_run_that_fails_is_a_provider_error_and_the_model_stays_usable(
    package: Path, picture: Path
) -> None:
    model = fastvlm_onnx.load(package)
    with pytest.raises(ProviderError, match="CPUExecutionProvider failed while running it"):
        model.image_encoder.run_projector(np.zeros((1, 3, 32), np.float32))
    assert model.generate(picture, "Hi", max_new_tokens=2).token_ids


def test_a_cache_that_does_not_fit_is_an_error(package: Path) -> None:
    model = fastvlm_onnx.load(package)
    with pytest.raises(ProviderError, match="no memory for keys and values of"):
        model.language_model.new_cache(10**12)


# --- the processor's features --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "features"),
    [
        (
            "model name\t: X\nflags\t\t: fpu avx2 avx512f avx512_vnni amx_int8 vmx\n",
            ["avx2", "avx512f", "avx512_vnni", "amx_int8"],
        ),
        ("processor\t: 0\nFeatures\t: fp asimd i8mm\nCPU part\t: 0xd40\n", ["asimd", "i8mm"]),
        ("model name\t: X\n", []),
    ],
    ids=["x86", "arm", "none listed"],
)
def test_the_processors_features_are_read_from_linux(
    tmp_path: Path, text: str, features: list[str]
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert hardware.processor_features(tmp_path / "cpuinfo") == features
    assert hardware.processor_features(tmp_path / "absent") == []


# --- threads -------------------------------------------------------------------------------------


def test_cores_are_those_this_process_may_use() -> None:
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system does not say what a process may use")
    program = (
        "from fastvlm_onnx.runtime.ort.hardware import physical_cores; print(physical_cores())"
    )
    pinned = f"import os; os.sched_setaffinity(0, {{0}}); {program}"
    found = [
        subprocess.run([sys.executable, "-c", text], capture_output=True, text=True).stdout.strip()
        for text in (program, pinned)
    ]
    assert found[0] in ("None", str(hardware.physical_cores()))
    assert found[1] in ("None", "1")


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_the_limit_of_a_cgroup_counts(
    tmp_path: Path, files: dict[str, str], cores: int | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert hardware.cgroup_cores(tmp_path) == cores


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (
            "/onnxruntime/onnxruntime/python/onnxruntime_pybind_state.cc:1053 "
            "std::shared_ptr<onnxruntime::IExecutionProviderFactory> "
            "onnxruntime::python::CreateExecutionProviderFactoryInstance("
            "const onnxruntime::SessionOptions&, const std::string&, "
            "const onnxruntime::ProviderOptionsMap&) Invalid OpenVINO EP option: colour\n",
            "Invalid OpenVINO EP option: colour",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Load model failed:/src/core/graph/model.cc:182 "
            "onnxruntime::Model::Model(onnx::ModelProto&&, const PathString&) Unsupported model IR "
            "version: 99 (of 11)",
            "[ONNXRuntimeError] : 1 : FAIL : Load model failed: Unsupported model IR version: 99 "
            "(of 11)",
        ),
        ("tensor.cc:12 size (3) is negative", "size (3) is negative"),
        ("std::bad_alloc", "std::bad_alloc"),
    ],
)
def test_lines_of_source_are_left_out_of_another_librarys_message(message: str, shown: str) -> None:
    assert providers.in_one_line(RuntimeError(message)) == shown
