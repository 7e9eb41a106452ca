"""Checkpoints to export: the built-in one, and random ones stored as Apple stores them."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from apple_archive import NAME, PART, apple_archive, left_in
from archive_server import ArchiveServer, serve
from random_checkpoint import DEMO_CHECKPOINT, LanguageSize, write_random_checkpoint
from safetensors.numpy import load_file, save_file

from fastvlm_onnx import CheckpointError
from fastvlm_onnx.agreement import Tolerance
from fastvlm_onnx.errors import FastVLMError
from fastvlm_onnx.export.architecture.tensor_names import VISION_PREFIX
from fastvlm_onnx.export.sources.apple_zoo import download_checkpoint
from fastvlm_onnx.export.sources.open_checkpoint import open_checkpoint
from fastvlm_onnx.variants import VARIANTS

Tensors = dict[str, np.ndarray]
CALIBRATION_TEXT = "The ferry left at noon, and two of the passengers had no tickets. "


@pytest.fixture(scope="session")
def small_language() -> LanguageSize:
    """Three heads to a group, more rows than tokens, lm_head tied."""
    return LanguageSize(
        hidden_size=96,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        vocab_size=768,
        tokens=739,
        is_tied=True,
    )


@pytest.fixture(scope="session")
def demo_vision() -> dict[str, tuple[int, ...]]:
    """Shapes of the miniature vision encoder, which has the whole architecture."""
    tensors = open_checkpoint("demo").tensors
    return {
        name.removeprefix(VISION_PREFIX): tensor.shape
        for name, tensor in tensors.items()
        if name.startswith(VISION_PREFIX)
    }


@pytest.fixture
def checkpoint(
    tmp_path: Path, demo_vision: dict[str, tuple[int, ...]], small_language: LanguageSize
) -> Path:
    """A small random checkpoint that a test may damage."""
    folder = tmp_path / "checkpoint"
    write_random_checkpoint(folder, small_language, vision=demo_vision, image_size=128)
    return folder


@pytest.fixture
def edit_tensors(checkpoint: Path) -> Callable[[Callable[[Tensors], object]], None]:
    """Rewrite the checkpoint's weights after a change."""

    def edit(change: Callable[[Tensors], object]) -> None:
        path = checkpoint / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return edit


@pytest.fixture(scope="session")
def demo_checkpoint() -> Path:
    return DEMO_CHECKPOINT


@pytest.fixture
def change_demo(
    demo_checkpoint: Path, tmp_path: Path
) -> Callable[[Callable[[Tensors], object]], Path]:
    """The built-in checkpoint after a change of its weights, in float32."""

    def change(edit: Callable[[Tensors], object]) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(demo_checkpoint, folder)
        path = folder / "model.safetensors"
        tensors = {
            name: array if array.dtype.kind == "i" else array.astype(np.float32)
            for name, array in load_file(path).items()
        }
        edit(tensors)
        save_file(tensors, path)
        return folder

    return change


@pytest.fixture
def scale_demo(change_demo: Callable[..., Path]) -> Callable[[str], Path]:
    """The built-in checkpoint with one tensor times 1.01."""
    return lambda name: change_demo(lambda tensors: tensors.update({name: tensors[name] * 1.01}))


@pytest.fixture
def set_tolerance(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tolerance], None]:
    """Give fp32 another tolerance."""

    def set_tolerance(tolerance: Tolerance) -> None:
        monkeypatch.setitem(VARIANTS, "fp32", replace(VARIANTS["fp32"], tolerance=tolerance))

    return set_tolerance


@pytest.fixture(scope="session")
def archive(demo_checkpoint: Path) -> bytes:
    """The built-in checkpoint in Apple's zip."""
    return apple_archive(demo_checkpoint)


@pytest.fixture
def server(archive: bytes) -> Iterator[ArchiveServer]:
    with serve(ArchiveServer(f"/datasets/{NAME}.zip", archive)) as started:
        yield started


@pytest.fixture
def fetched(tmp_path: Path, server: ArchiveServer) -> Callable[..., Path]:
    """Download from the server into the test's own folder, without waiting between tries."""

    def run(**options: object) -> Path:
        options = {"base_url": f"{server.address}/datasets", "pauses_seconds": (0, 0)} | options
        return download_checkpoint("0.5b", 3, tmp_path / NAME, **options)

    return run


@pytest.fixture
def refused_download(fetched: Callable[..., Path], tmp_path: Path) -> Callable[..., str]:
    """Return the one line of a refused download, which leaves no checkpoint behind."""

    def run(kind: type[FastVLMError] = CheckpointError, **options: object) -> str:
        with pytest.raises(kind) as caught:
            fetched(**options)
        # The lock is there while another process downloads.
        assert left_in(tmp_path) <= {PART, f"{PART}.json", f"{PART}.lock"}
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return run


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small calibration set: texts in all forms, and no image."""
    folder = tmp_path_factory.mktemp("sets") / "texts"
    folder.mkdir()
    (folder / "one.txt").write_text(40 * CALIBRATION_TEXT)
    (folder / "two.json").write_text(
        json.dumps([CALIBRATION_TEXT[::-1], "", " \n", "Zwölf Boxkämpfer"])
    )
    (folder / "three.jsonl").write_text(f'{json.dumps("def f(x): return x")}\n\n"a, b; c"\n')
    (folder / "notes.md").write_text("not a text of the set")
    return folder
