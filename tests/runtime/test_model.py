"""load, generate, stream: the library as an application uses it."""

from pathlib import Path

import numpy as np
import pytest

import fastvlm_onnx
from fastvlm_onnx import FastVLM, InputError, PromptTooLongError, ProviderError
from fastvlm_onnx.runtime.ort.hardware import cores
from fastvlm_onnx.runtime.ort.session import session_options

PROMPT = "Describe the image."


def test_the_sample_pictures_are_answered_right(
    model: FastVLM, questions: dict[str, dict[str, str]], package: Path
) -> None:
    pictures = Path(fastvlm_onnx.__file__).parent / "demo/pictures"
    assert len(questions) == 6
    for name, answers in questions.items():
        for prompt, answer in answers.items():
            generation = model.generate(pictures / name, prompt)
            assert generation.text == answer, (name, prompt)
            assert generation.finish_reason == "stop"


def test_streamed_pieces_join_to_the_answer(model: FastVLM, picture: Path) -> None:
    *pieces, last = model.stream(picture, PROMPT)
    assert len(pieces) > 1
    assert all(piece.text and piece.generation is None for piece in pieces)
    assert last.generation is not None
    joined = "".join(piece.text for piece in pieces) + last.text
    assert joined == last.generation.text == model.generate(picture, PROMPT).text


def test_an_answer_is_cut_at_max_new_tokens(model: FastVLM, picture: Path) -> None:
    whole = model.generate(picture, PROMPT)
    cut = model.generate(picture, PROMPT, max_new_tokens=3)
    assert cut.token_ids == whole.token_ids[:3]
    assert cut.finish_reason == "length"
    assert whole.finish_reason == "stop"


def test_greedy_ignores_the_seed(model: FastVLM, picture: Path) -> None:
    answers = {model.generate(picture, PROMPT, seed=seed).text for seed in (1, 2, None)}
    assert len(answers) == 1


def test_one_seed_gives_one_answer_and_others_differ(model: FastVLM, picture: Path) -> None:
    def answer(seed: int) -> list[int]:
        hot = model.generate(
            picture, PROMPT, temperature=50.0, top_k=0, seed=seed, max_new_tokens=20
        )
        return hot.token_ids

    assert answer(1) == answer(1)
    assert answer(1) != answer(2)


def test_a_generation_says_what_made_it(model: FastVLM, picture: Path) -> None:
    generation = model.generate(picture, PROMPT)
    assert generation.model == "demo"
    assert generation.precision == "fp32"
    assert generation.providers == dict.fromkeys(
        ("vision_encoder", "projector", "decoder"), "CPUExecutionProvider"
    )
    timings = generation.timings
    assert timings.preprocess + timings.vision + timings.prefill <= timings.first_token
    assert timings.tokens_per_second > 0


def test_prompt_tokens_count_the_image(model: FastVLM, picture: Path) -> None:
    found = model.generate(picture, "Read", max_new_tokens=1).prompt_tokens
    (text,) = model.template.prompt(["\nRead"])
    assert found == len(text) + model.num_image_tokens
    assert model.num_image_tokens == (256 // 64) ** 2


def test_encoding_several_images_gives_rows_for_each(model: FastVLM) -> None:
    pixel_values = np.zeros((2, 3, 256, 256), np.float32)
    pixel_values[1] = 1
    features = model.image_encoder.encode_pixel_values(pixel_values)
    assert features.shape == (2, 16, model.manifest.decoder.hidden_size)
    alone = model.image_encoder.encode_pixel_values(pixel_values[1:])
    np.testing.assert_allclose(features[1:], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "pixel_values",
    [
        np.zeros((1, 3, 128, 128), np.float32),
        np.zeros((3, 256, 256), np.float32),
        np.zeros((1, 3, 256, 256), np.float64),
    ],
    ids=["another size", "no batch axis", "float64"],
)
def test_pixel_values_of_another_shape_are_refused(
    model: FastVLM, pixel_values: np.ndarray
) -> None:
    words = r"expected float32 \[batch_size, 3, 256, 256\]"
    with pytest.raises(InputError, match=words):
        model.image_encoder.encode_pixel_values(pixel_values)


def test_several_images_in_one_turn_are_all_seen(
    model: FastVLM, questions: dict[str, dict[str, str]], picture: Path
) -> None:
    names = list(questions)[:2]
    images = [picture.with_name(name) for name in names]
    found = model.generate(images, PROMPT, max_new_tokens=4)
    one = model.generate(images[0], PROMPT, max_new_tokens=4)
    separator = len(model.template.tokenizer.encode("\n"))
    assert found.prompt_tokens == one.prompt_tokens + model.num_image_tokens + separator
    features = [model.encode_image(image) for image in images]
    assert model.generate(features, PROMPT, max_new_tokens=4).token_ids == found.token_ids


def test_a_prompt_alone_is_answered_without_an_image(model: FastVLM) -> None:
    found = model.generate(None, "Hello", max_new_tokens=2)
    (ids,) = model.template.prompt(["Hello"])
    assert found.prompt_tokens == len(ids)
    with pytest.raises(InputError, match="the list of images is empty"):
        model.generate([], "Hello")
    with pytest.raises(InputError, match="the prompt is a int; expected a text"):
        model.generate(None, 5)  # type: ignore[arg-type]


def test_old_parameter_names_warn_and_work(model: FastVLM, picture: Path) -> None:
    with pytest.warns(DeprecationWarning, match="'picture' is now 'image'"):
        old = model.generate(picture=picture, prompt=PROMPT, max_new_tokens=2)  # type: ignore[call-arg]
    assert old.token_ids == model.generate(picture, PROMPT, max_new_tokens=2).token_ids
    with pytest.warns(DeprecationWarning, match="Options is now GenerationOptions"):
        assert fastvlm_onnx.Options is fastvlm_onnx.GenerationOptions
    with pytest.warns(DeprecationWarning, match="as a bare array are deprecated"):
        model.generate(model.encode_image(picture).array, PROMPT, max_new_tokens=2)


def test_a_prompt_longer_than_the_context_is_refused(model: FastVLM, picture: Path) -> None:
    context = model.manifest.decoder.context_length
    with pytest.raises(PromptTooLongError, match=f"context holds {context}; shorten the prompt"):
        model.stream(picture, "z" * 2 * context)


def test_an_answer_stops_where_the_context_ends(model: FastVLM, picture: Path) -> None:
    context = model.manifest.decoder.context_length
    base = model.generate(picture, "q", max_new_tokens=1).prompt_tokens
    prompt = "q" + "\u0007" * (context - base - 2)  # one token each
    generation = model.generate(picture, prompt, ignore_eos=True)
    assert generation.prompt_tokens == context - 2
    assert len(generation.token_ids) == 2
    assert generation.finish_reason == "length"


@pytest.mark.parametrize("max_new_tokens", [0, -1])
def test_an_answer_of_no_tokens_is_refused(
    model: FastVLM, picture: Path, max_new_tokens: int
) -> None:
    with pytest.raises(InputError, match=f"max_new_tokens is {max_new_tokens}"):
        model.stream(picture, PROMPT, max_new_tokens=max_new_tokens)


def test_bad_input_is_refused_before_the_first_piece_is_asked_for(
    model: FastVLM, tmp_path: Path
) -> None:
    with pytest.raises(InputError):
        model.stream(tmp_path / "absent.png", PROMPT)


class TestLoad:
    def test_a_precision_that_was_not_exported(self, package: Path) -> None:
        with pytest.raises(InputError, match="has no int4 variant, only fp32; add it with"):
            fastvlm_onnx.load(package, precision="int4")

    def test_an_image_size_that_was_not_exported(self, package: Path) -> None:
        with pytest.raises(InputError, match="not exported for 512 pixels, only for 256"):
            fastvlm_onnx.load(package, image_size=512)

    def test_a_provider_nobody_knows(self, package: Path) -> None:
        with pytest.raises(ProviderError, match="'abacus' is unknown; expected auto, cpu"):
            fastvlm_onnx.load(package, providers="abacus")

    def test_a_provider_this_build_lacks(self, package: Path) -> None:
        import onnxruntime

        if "CoreMLExecutionProvider" in onnxruntime.get_available_providers():
            pytest.skip("this ONNX Runtime has CoreML")
        with pytest.raises(ProviderError, match="CoreMLExecutionProvider is not in this"):
            fastvlm_onnx.load(package, providers="coreml")

    def test_a_thread_count_below_one(self, package: Path) -> None:
        with pytest.raises(InputError, match="threads is 0; expected 1 or more"):
            fastvlm_onnx.load(package, threads=0)

    def test_one_thread_gives_the_same_answer(
        self, package: Path, model: FastVLM, picture: Path
    ) -> None:
        alone = fastvlm_onnx.load(package, threads=1)
        assert alone.generate(picture, PROMPT).text == model.generate(picture, PROMPT).text


def test_there_are_no_threads_without_a_core() -> None:
    # With 256 threads on 2 cores, an answer of two tokens took a minute.
    assert session_options(cores() + 1).intra_op_num_threads == cores()
    assert session_options(1).intra_op_num_threads == 1
    assert session_options(None).intra_op_num_threads <= cores()
