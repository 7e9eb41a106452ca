"""Every variant opens with the installed ONNX Runtime, or says which version it needs."""

from pathlib import Path

import numpy as np
import pytest
from installed_onnxruntime import runs, skip_without

import fastvlm_onnx
from fastvlm_onnx import ProviderError
from fastvlm_onnx.package import read_manifest
from fastvlm_onnx.variants import CPU_VARIANTS, VARIANTS, variants_for_provider


@pytest.mark.parametrize("variant", CPU_VARIANTS)
def test_a_variant_answers_or_names_the_onnxruntime_that_it_needs(
    variants_package: Path,
    questions: dict[str, dict[str, str]],
    picture: Path,
    variant: str,
) -> None:
    if not runs(variant):
        least = VARIANTS[variant].least_onnxruntime
        with pytest.raises(ProviderError, match=f"and {variant} needs at least {least}; run `pip"):
            fastvlm_onnx.load(variants_package, precision=variant)
        return
    with fastvlm_onnx.load(variants_package, precision=variant) as model:
        answers = questions[picture.name]
        for prompt, answer in answers.items():
            assert model.generate(picture, prompt).text == answer
        # A later question of a conversation brings no image and no text before it.
        with model.chat() as chat:
            asked = [
                chat.ask(prompt, None if turn else picture) for turn, prompt in enumerate(answers)
            ]
        assert asked[0].text == next(iter(answers.values()))
        assert all(answer.finish_reason == "stop" for answer in asked)


def test_the_best_variant_that_runs_is_chosen(variants_package: Path) -> None:
    there = read_manifest(variants_package).variants
    expected = [name for name in variants_for_provider("cpu") if name in there and runs(name)]
    with fastvlm_onnx.load(variants_package, providers="cpu") as model:
        assert model.precision == expected[0]


@pytest.mark.parametrize("variant", [name for name in CPU_VARIANTS if name not in ("fp32", "fp16")])
def test_an_int8_image_does_not_depend_on_the_other_images_of_its_batch(
    variants_package: Path, variant: str
) -> None:
    skip_without(variant)
    with fastvlm_onnx.load(variants_package, precision=variant, providers="cpu") as model:
        size = model.image_size
        pixel_values = np.random.default_rng(0).random((2, 3, size, size), np.float32)
        pixel_values[1] *= 0.1  # one scale for both would leave a few steps to the second image
        together = model.image_encoder.encode_pixel_values(pixel_values)
        alone = model.image_encoder.encode_pixel_values(pixel_values[1:])
    np.testing.assert_array_equal(together[1:], alone)
