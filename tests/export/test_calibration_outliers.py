"""Calibration on one sentence, of a checkpoint with tokens of a thousand times the others' values.

The prompts have other tokens than the sentence. Weights that serve the sentence alone would cost
them more than rounding to the nearest.
"""

from pathlib import Path

import numpy as np
import pytest
from random_checkpoint import LanguageSize, write_random_checkpoint

import fastvlm_onnx
from fastvlm_onnx.export.pipeline import export_package
from fastvlm_onnx.export.verification.metrics import kl_divergences

OUTLIERS = (40, 41)


@pytest.fixture(scope="module")
def outlier_checkpoint(tmp_path_factory: pytest.TempPathFactory, demo_vision: dict) -> Path:
    folder = tmp_path_factory.mktemp("outliers") / "checkpoint"
    language = LanguageSize(256, 768, 4, 4, 2, 768, 739, is_tied=False)
    write_random_checkpoint(
        folder, language, vision=demo_vision, image_size=128, outlier_tokens=OUTLIERS
    )
    return folder


def logits(package: Path, precision: str) -> np.ndarray:
    """Logits behind tokens that are no outliers, on prompts with two outliers."""
    rng = np.random.default_rng(3)
    rows = []
    with fastvlm_onnx.load(package, precision=precision) as model:
        language_model = model.language_model
        for _ in range(6):
            ids = rng.integers(100, 400, 40).tolist()
            ids[3], ids[20] = OUTLIERS
            steps = language_model.teacher_forced_logits(language_model.embed([ids[:24]]), ids[24:])
            rows += [row.copy() for row in steps]
    return np.array(rows)


def test_a_calibration_on_few_words_is_no_worse_than_rounding_to_the_nearest(
    outlier_checkpoint: Path, texts: Path, tmp_path: Path
) -> None:
    nearest, found = tmp_path / "nearest", tmp_path / "found"
    export_package(outlier_checkpoint, nearest, precisions=["fp32", "int8", "int4"])
    export_package(outlier_checkpoint, found, precisions=["int8", "int4"], calibrate=texts)
    exact = logits(nearest, "fp32")
    for precision in ("int8", "int4"):
        before, after = (
            kl_divergences(logits(package, precision), exact).mean() for package in (nearest, found)
        )
        assert after < 1.1 * before
