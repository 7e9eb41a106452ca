"""Where int8 products saturate: the verdict of the probe, its effect, and the reports."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from command_line import refusal, run
from installed_onnxruntime import skip_without

import fastvlm_onnx
from fastvlm_onnx import InputError
from fastvlm_onnx.runtime.ort import saturation
from fastvlm_onnx.runtime.ort.provider_selection import ProviderChoice
from fastvlm_onnx.runtime.ort.providers import CPU, import_onnxruntime
from fastvlm_onnx.runtime.ort.saturation import (
    EXACT_PRODUCTS,
    PROBE_FILE,
    VERDICT_VARIABLE,
    int8_products_saturate,
)
from fastvlm_onnx.runtime.ort.session import GraphSession


@pytest.fixture
def old_package(old_package: Path) -> Path:
    """The package of 0.1.0, which holds `fast` alone."""
    skip_without("fast")
    return old_package


@pytest.fixture
def int8_graph(tmp_path: Path) -> Path:
    """The probe's own graph, under the name of a graph with int8 products."""
    path = tmp_path / "products.int8.onnx"
    path.write_bytes(Path(saturation.__file__).with_name(PROBE_FILE).read_bytes())
    return path


def is_set(session: GraphSession) -> bool:
    name, value = EXACT_PRODUCTS
    try:
        return session._session.get_session_options().get_session_config_entry(name) == value
    except RuntimeError:  # ONNX Runtime's answer for an entry that was never added
        return False


@pytest.mark.parametrize(("verdict", "weights"), [("0", "int8"), ("1", "uint8")])
def test_the_verdict_decides_how_int8_weights_are_read(
    int8_graph: Path, monkeypatch: pytest.MonkeyPatch, verdict: str, weights: str
) -> None:
    monkeypatch.setenv(VERDICT_VARIABLE, verdict)
    session = GraphSession(int8_graph, ProviderChoice(CPU), has_int8_products=True)
    assert (session.int8_weights, is_set(session)) == (weights, verdict == "1")


def test_products_are_exact_with_the_probes_own_verdict(
    int8_graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a processor that saturates this fails without the rewriting."""
    monkeypatch.delenv(VERDICT_VARIABLE, raising=False)
    session = GraphSession(int8_graph, ProviderChoice(CPU), has_int8_products=True)
    (products,) = session.run(["y"], {"a": np.full((4, 64), 255, np.uint8)})
    assert (products == 64 * 255 * 127).all()


def test_the_probe_agrees_with_the_products_of_a_plain_session(
    int8_graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VERDICT_VARIABLE, raising=False)
    session = import_onnxruntime().InferenceSession(
        str(int8_graph), providers=["CPUExecutionProvider"]
    )
    (products,) = session.run(["y"], {"a": np.full((4, 64), 255, np.uint8)})
    assert int8_products_saturate() == (products != 64 * 255 * 127).any()


def test_a_graph_without_int8_products_probes_nothing(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def probe() -> bool:
        raise AssertionError("probed for nothing")

    monkeypatch.setattr(saturation, "_probe", probe)
    with fastvlm_onnx.load(package, precision="fp32") as model:
        assert {session.int8_weights for session in model.sessions.values()} == {None}


def test_a_verdict_other_than_0_or_1_is_refused(
    old_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VERDICT_VARIABLE, "yes")
    with pytest.raises(InputError, match="is 'yes'; expected 0 or 1"):
        int8_products_saturate()
    assert VERDICT_VARIABLE in refusal("generate", "x.png", "Hi", "--model", old_package)


# --- reports ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdict", "words"), [("0", "are exact"), ("1", "rewritten as uint8")], ids=["exact", "not"]
)
def test_bench_and_doctor_report_how_int8_weights_are_read(
    old_package: Path, monkeypatch: pytest.MonkeyPatch, verdict: str, words: str
) -> None:
    monkeypatch.setenv(VERDICT_VARIABLE, verdict)
    few = ("--warmup", 0, "--repeats", 1, "--new-tokens", 2)
    assert words in run("bench", old_package, *few).stdout
    (case,) = json.loads(run("bench", old_package, "--json", *few).stdout)["cases"]
    assert case["int8_weights"] == ("uint8" if verdict == "1" else "int8")
    assert words in run("doctor", old_package).stdout


# --- packages exported before 0.2 ----------------------------------------------------------------


# The picture and the answers are those of the built-in model that 0.1.0 brought.
ANSWERS_OF_0_1 = {
    "What is in the image?": (
        "A green circle, a yellow triangle, a yellow square and an orange cross."
    ),
    "How many shapes do you see?": "There are four shapes.",
    "What color is the square?": "The square is yellow.",
    "What is the shape in orange?": "The orange shape is a cross.",
}


def test_a_package_of_0_1_opens_and_answers(old_package: Path) -> None:
    picture = Path(__file__).parent.parent / "packages/0.1.0-shapes.png"
    with fastvlm_onnx.load(old_package) as model:
        assert model.manifest.source.exporter == "fastvlm-onnx 0.1.0"
        assert model.precision == "fast"
        for prompt, expected in ANSWERS_OF_0_1.items():
            answer = model.generate(picture, prompt)
            assert answer.finish_reason == "stop"
            # Where products saturate its image features are inexact, and a word may differ.
            assert answer.text == expected or int8_products_saturate()


def test_a_package_of_0_1_gives_one_warning_where_products_saturate(
    old_package: Path,
    picture: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(VERDICT_VARIABLE, "1")
    with caplog.at_level(logging.WARNING, "fastvlm_onnx"):
        fastvlm_onnx.load(old_package).close()
    (line,) = caplog.messages
    for words in ("fast", "saturates", "since 0.2", f"-o {old_package} --precision fast"):
        assert words in line
    done = run("generate", picture, "What is in the image?", "--model", old_package)
    assert done.returncode == 0
    assert done.stderr.count("warning: ") == 1


def test_a_package_of_0_1_does_not_warn_where_products_are_exact(
    old_package: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(VERDICT_VARIABLE, "0")
    with caplog.at_level(logging.WARNING, "fastvlm_onnx"):
        fastvlm_onnx.load(old_package).close()
    assert not caplog.messages
