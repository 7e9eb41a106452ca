"""Engines other than ONNX Runtime: whole answers from the graphs of a package.

Each engine is a package of PyPI, which `make test-clients` installs in an environment of its own.
"""

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
Feeds = Mapping[str, np.ndarray]
Run = Callable[[Feeds], dict[str, np.ndarray]]

pytestmark = pytest.mark.slow


def output_names(path: Path) -> list[str]:
    import onnx

    return [value.name for value in onnx.load(path, load_external_data=False).graph.output]


def open_with_tract(path: Path) -> Run:
    import tract

    graph, names = tract.onnx().load(path), output_names(path)
    inputs = [graph.input_name(i) for i in range(graph.input_count())]
    model = graph.into_model().into_runnable()

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        found = model.run([np.ascontiguousarray(feeds[name]) for name in inputs])
        return {name: tensor.to_numpy() for name, tensor in zip(names, found, strict=True)}

    return run


def open_with_opencv(path: Path) -> Run:
    import cv2

    network, names = cv2.dnn.readNetFromONNX(str(path)), output_names(path)

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        for name, array in feeds.items():
            network.setInput(array, name)
        return dict(zip(names, network.forward(names), strict=True))

    return run


def answers(
    model: Any, questions: dict[str, dict[str, str]], picture: Path
) -> dict[str, dict[str, str]]:
    return {
        name: {prompt: model.answer(picture.with_name(name), prompt) for prompt in prompts}
        for name, prompts in questions.items()
    }


@pytest.mark.parametrize(
    ("module", "open_graph"), [("tract", open_with_tract), ("cv2", open_with_opencv)]
)
def test_standard_graphs_are_answered_by_another_engine(
    module: str,
    open_graph: Callable[[Path], Run],
    openvino_only: ModuleType,
    standard_package: Path,
    questions: dict,
    picture: Path,
) -> None:
    pytest.importorskip(module, reason=f"{module} is not installed (make test-clients)")
    model = openvino_only.PortableModel(standard_package, "fp32", open_graph)
    assert answers(model, questions, picture) == questions


@pytest.mark.parametrize("variant", ["fp32", "fp16", "int4"])
def test_openvino_alone_answers_from_a_package_for_onnx_runtime(
    variant: str,
    openvino_only: ModuleType,
    variants_package: Path,
    questions: dict,
    picture: Path,
) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed (make test-clients)")
    open_graph = openvino_only.open_with_openvino
    model = openvino_only.PortableModel(variants_package, variant, open_graph)
    assert answers(model, questions, picture) == questions


def test_openvino_alone_answers_from_standard_graphs(
    openvino_only: ModuleType, standard_package: Path, questions: dict, picture: Path
) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed (make test-clients)")
    model = openvino_only.PortableModel(standard_package, "fp32", openvino_only.open_with_openvino)
    assert answers(model, questions, picture) == questions


def test_the_example_runs_as_its_page_says(
    standard_package: Path, questions: dict, picture: Path
) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed (make test-clients)")
    prompt, answer = next(iter(questions[picture.name].items()))
    command = [sys.executable, ROOT / "examples/openvino_only.py", standard_package, picture]
    done = subprocess.run([*command, prompt], capture_output=True, text=True, check=True)
    assert done.stdout == answer + "\n"
