"""The modules that imports load in a fresh interpreter."""

import subprocess
import sys
from pathlib import Path

import pytest

import fastvlm_onnx

SERVER_SIDE = {"starlette", "uvicorn", "pydantic", "prometheus_client", "httpx"}
EXPORT_SIDE = {"onnx", "onnxscript", "onnx_ir", "torch", "transformers", "safetensors"}


def modules_after(statement: str) -> set[str]:
    """Top-level names, and ours in full, that are loaded once `statement` has run."""
    code = f"{statement}\nimport sys; print('\\n'.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = set(run.stdout.split())
    return names | {name.split(".")[0] for name in names}


def test_importing_the_package_loads_neither_numpy_nor_onnxruntime() -> None:
    loaded = modules_after("import fastvlm_onnx")
    assert not loaded & {"numpy", "onnxruntime", "tokenizers", "PIL", "click"}


def test_importing_load_does_not_load_what_only_commands_need() -> None:
    loaded = modules_after("import fastvlm_onnx; fastvlm_onnx.load")
    assert "fastvlm_onnx.runtime.loading" in loaded
    assert not loaded & {"click", "tqdm", "filelock", "huggingface_hub"}


def test_the_runtime_loads_nothing_of_the_export_side() -> None:
    loaded = modules_after("import fastvlm_onnx.runtime.model, onnxruntime")
    assert "onnxruntime" in loaded
    assert not loaded & EXPORT_SIDE
    assert not any(name.startswith("fastvlm_onnx.export") for name in loaded)


def test_the_commands_load_neither_side_before_one_runs() -> None:
    loaded = modules_after("import fastvlm_onnx.cli")
    assert not loaded & {"numpy", "onnxruntime", "tqdm", "huggingface_hub", *EXPORT_SIDE}
    assert not loaded & SERVER_SIDE


@pytest.mark.parametrize("name", ["load", "Chat", "FastVLM", "ImageFeatures"])
def test_numpy_is_imported_with_the_first_name_that_needs_it(name: str) -> None:
    assert "numpy" not in modules_after("import fastvlm_onnx")
    assert "numpy" in modules_after(f"import fastvlm_onnx; fastvlm_onnx.{name}")


@pytest.mark.parametrize("name", ["Generation", "GenerationOptions", "Piece", "Timings"])
def test_records_and_options_need_no_numpy(name: str) -> None:
    assert "numpy" not in modules_after(f"import fastvlm_onnx; fastvlm_onnx.{name}")


def test_the_public_names() -> None:
    assert fastvlm_onnx.__all__ == [
        "BusyError",
        "Chat",
        "CheckpointError",
        "ClosedError",
        "FastVLM",
        "FastVLMError",
        "Generation",
        "GenerationConfig",
        "GenerationOptions",
        "ImageFeatures",
        "InputError",
        "NotSeenError",
        "PackageError",
        "Piece",
        "PromptTooLongError",
        "ProviderError",
        "ProviderOptions",
        "Request",
        "RunningAnswer",
        "Scheduler",
        "SchedulerStats",
        "SeenImage",
        "Timings",
        "UnsupportedError",
        "__version__",
        "load",
    ]


def test_every_public_name_can_be_imported() -> None:
    for name in fastvlm_onnx.__all__:
        assert getattr(fastvlm_onnx, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fastvlm_onnx.nothing
    assert set(dir(fastvlm_onnx)) == set(fastvlm_onnx.__all__)


def test_without_onnxruntime_the_error_names_the_command() -> None:
    code = """
import sys
from pathlib import Path
sys.modules["onnxruntime"] = None  # importing it now fails, as where it is not installed
from fastvlm_onnx import ProviderError
from fastvlm_onnx.runtime.ort.providers import import_onnxruntime
try:
    import_onnxruntime()
except ProviderError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "fastvlm-onnx[cpu]"' in run.stdout


def test_without_llguidance_a_structured_answer_names_the_extra(package: Path) -> None:
    code = f"""
import sys
from pathlib import Path
sys.modules["llguidance"] = None  # importing it now fails, as where it is not installed
import fastvlm_onnx
with fastvlm_onnx.load({str(package)!r}) as model:
    print(model.generate(None, "Hi", max_new_tokens=1).finish_reason)
    try:
        model.generate("nowhere.png", "Hi", choices=["Yes"])
    except fastvlm_onnx.InputError as error:
        print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    finish_reason, error = run.stdout.splitlines()
    assert finish_reason in ("stop", "length")
    assert error == (
        "a structured answer needs packages that are not installed (llguidance); run "
        '`pip install "fastvlm-onnx[structured]"`.'
    )


def test_llguidance_is_imported_with_the_first_structured_answer() -> None:
    assert "llguidance" not in modules_after("import fastvlm_onnx.runtime.model, fastvlm_onnx.cli")
