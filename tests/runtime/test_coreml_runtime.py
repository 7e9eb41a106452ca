"""CoreML's compiled models on disk and the check of its features, with stand-ins for CoreML."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastvlm_onnx
from fastvlm_onnx import ProviderError
from fastvlm_onnx.names import VISION_ENCODER
from fastvlm_onnx.runtime.ort import coreml, installed, provider_selection, providers, session
from fastvlm_onnx.runtime.ort.compiled_graphs import CompiledGraph
from fastvlm_onnx.runtime.ort.provider_selection import ProviderChoice
from fastvlm_onnx.runtime.ort.providers import COREML, CPU
from fastvlm_onnx.runtime.ort.session import GraphSession
from fastvlm_onnx.user_data import HOME_VARIABLE

SHA = "0123456789abcdef" * 4
PIXELS = np.zeros((1, 3, 256, 256), np.float32)


@pytest.fixture
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    return tmp_path


@pytest.fixture
def on_coreml(user_folder: Path) -> ProviderChoice:
    return coreml.with_model_cache(ProviderChoice(COREML), compiled_graph())


def compiled_graph(sha256: str = SHA) -> CompiledGraph:
    return CompiledGraph("vision_encoder.onnx", sha256, COREML, {})


def test_compiled_models_are_kept_by_graph_and_version(
    on_coreml: ProviderChoice, user_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(on_coreml.options["ModelCacheDirectory"])
    assert folder.is_dir()
    assert user_folder / "cache" in folder.parents
    assert folder.parent == compiled_graph().folder != compiled_graph("f" * 64).folder
    monkeypatch.setattr(providers.import_onnxruntime(), "__version__", "1.99.0")
    assert folder.parent != compiled_graph().folder
    named = ProviderChoice(COREML, {"ModelCacheDirectory": "/mine"})
    assert coreml.with_model_cache(named, compiled_graph()) == named


def test_a_cache_folder_that_cannot_be_made_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, "fastvlm_onnx"):
        choice = coreml.with_model_cache(ProviderChoice(COREML), compiled_graph())
    assert choice == ProviderChoice(COREML)
    assert "compiled graphs cannot be kept there" in caplog.text
    features = np.ones((1, 4, 2), np.float32)
    assert coreml.check_features(SHA, PIXELS, lambda _: features, lambda _: features) == 0


@pytest.mark.parametrize("left", [b"", b"\x93NUMPY\x01"])
def test_an_incomplete_file_of_features_is_made_again(user_folder: Path, left: bytes) -> None:
    file = user_folder / "cache" / "coreml-features" / SHA[:40] / "features.256.npy"
    file.parent.mkdir(parents=True)
    file.write_bytes(left)
    features = np.ones((1, 4, 2), np.float32)
    assert coreml.check_features(SHA, PIXELS, lambda _: features, lambda _: features) == 0
    np.testing.assert_array_equal(np.load(file), features)


def test_a_compiled_model_that_cannot_be_loaded_is_compiled_again(
    on_coreml: ProviderChoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(on_coreml.options["ModelCacheDirectory"])
    (folder / "model.mlmodelc").write_text("by another version")
    opened = []

    def open_from_cache(self: GraphSession, options: object, path: Path) -> None:
        opened.append(list(folder.iterdir()))
        if opened[-1]:
            raise RuntimeError("Feature _x is required but not specified")

    monkeypatch.setattr(GraphSession, "_open", open_from_cache)
    monkeypatch.setattr(GraphSession, "_check_placement", lambda self: None)
    monkeypatch.setattr(session, "placement_of", lambda opened: None)
    GraphSession(Path("vision_encoder.onnx"), on_coreml)
    assert [len(found) for found in opened] == [1, 0]


def test_a_graph_that_cannot_be_loaded_without_a_cache_is_an_error(
    on_coreml: ProviderChoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: GraphSession, options: object, path: Path) -> None:
        raise RuntimeError("no such option\nand more")

    monkeypatch.setattr(GraphSession, "_open", refuse)
    with pytest.raises(ProviderError, match=r"cannot load it \(no such option and more\)"):
        GraphSession(Path("vision_encoder.onnx"), on_coreml)


def test_features_are_compared_with_those_of_the_cpu(user_folder: Path) -> None:
    right, asked = np.ones((1, 16, 8), np.float32), []

    def encode_on_cpu(pixel_values: np.ndarray) -> np.ndarray:
        asked.append(pixel_values.shape)
        return right

    for scale in (1.0, 1.01):
        error = coreml.check_features(SHA, PIXELS, lambda _, s=scale: right * s, encode_on_cpu)
        assert error == pytest.approx(scale - 1, abs=1e-3)
    assert asked == [(1, 3, 256, 256)]
    for wrong in (right * 1.2, right * np.nan, right[:, :4]):
        with pytest.raises(ProviderError, match="wrong image features on this machine"):
            coreml.check_features(SHA, PIXELS, lambda _, w=wrong: w, encode_on_cpu)


def test_a_model_on_coreml_is_checked_as_it_loads(
    package: Path, user_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CoreML is pretended: the CPU runs what it is given."""
    real_open = GraphSession._open

    def open_on_cpu(self: GraphSession, options: object, path: Path) -> Any:
        self._is_on_cpu, self.choice, asked = True, ProviderChoice(CPU), self.choice
        opened = real_open(self, options, path)
        self.choice = asked
        return opened

    for module in (installed, provider_selection):
        monkeypatch.setattr(module, "installed_providers", lambda: [COREML, CPU])
    monkeypatch.setattr(GraphSession, "_open", open_on_cpu)
    monkeypatch.setattr(GraphSession, "_check_placement", lambda self: None)
    model = fastvlm_onnx.load(package, providers="vision=coreml", precision="fp32")
    assert model.providers[VISION_ENCODER] == COREML
    sha = model.manifest.files["vision_encoder.256.fp32.onnx"].sha256
    stored = user_folder / "cache" / "coreml-features" / sha[:40] / "features.256.npy"
    np.save(stored, np.load(stored) + 1)
    with pytest.raises(ProviderError, match="CoreML gives wrong image features"):
        fastvlm_onnx.load(package, providers="vision=coreml", precision="fp32")
