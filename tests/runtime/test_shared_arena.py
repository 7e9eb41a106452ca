"""Graphs on the CPU take their activations' memory from one arena."""

import subprocess
import sys
from pathlib import Path

import fastvlm_onnx
from fastvlm_onnx.names import DECODER, VISION_ENCODER
from fastvlm_onnx.runtime.ort.session import GraphSession
from fastvlm_onnx.runtime.ort.shared_arena import USE_SHARED_ARENA

PROMPT = "Describe the image."
ANSWER_WHERE_AN_ARENA_IS_REGISTERED = """
import sys
import onnxruntime as ort

memory = ort.OrtMemoryInfo(
    "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
)
ort.create_and_register_allocator(memory, None)
import fastvlm_onnx

answer = fastvlm_onnx.load(sys.argv[1], providers="cpu").generate(sys.argv[2], sys.argv[3])
print(answer.text)
"""


def test_the_graphs_of_a_model_take_memory_from_one_arena(package: Path) -> None:
    with fastvlm_onnx.load(package, providers="cpu") as model:
        assert [
            takes_shared_memory(model.sessions[name]) for name in (VISION_ENCODER, DECODER)
        ] == [
            True,
            True,
        ]


def test_a_lazy_vision_encoder_leaves_no_memory_in_the_arena(package: Path) -> None:
    with fastvlm_onnx.load(package, providers="cpu", lazy_vision=True) as model:
        opened = model.sessions[VISION_ENCODER]._open_session()  # type: ignore[attr-defined]
        assert not takes_shared_memory(opened)


def test_a_process_with_an_arena_of_its_own_gets_the_same_answer(
    package: Path, picture: Path
) -> None:
    command = [sys.executable, "-c", ANSWER_WHERE_AN_ARENA_IS_REGISTERED, package, picture, PROMPT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    with fastvlm_onnx.load(package, providers="cpu") as model:
        expected = model.generate(picture, PROMPT).text
    assert (done.stdout.strip(), done.stderr) == (expected, "")


def takes_shared_memory(graph: object) -> bool:
    assert isinstance(graph, GraphSession)
    name, value = USE_SHARED_ARENA
    options = graph._session.get_session_options()
    try:
        return bool(options.get_session_config_entry(name) == value)
    except RuntimeError:  # the entry was not set
        return False
