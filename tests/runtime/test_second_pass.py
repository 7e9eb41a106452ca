"""The second pass: where `fast` is unsure, its prefill graph decides."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from installed_onnxruntime import skip_without
from numpy.typing import NDArray
from relative_error import relative_error

import fastvlm_onnx
from fastvlm_onnx import FastVLM
from fastvlm_onnx.names import LM_HEAD, LM_HEAD_SCREEN, PREFILL
from fastvlm_onnx.package import read_manifest
from fastvlm_onnx.runtime.engine.decoder import Decoder
from fastvlm_onnx.runtime.engine.kv_cache import KVCache
from fastvlm_onnx.runtime.engine.lm_head import ScreenedHead
from fastvlm_onnx.runtime.text.prompt import question
from fastvlm_onnx.second_pass import SecondPass
from fastvlm_onnx.variants import VARIANTS

PROMPT = "Describe the image in detail."
ALWAYS, NEVER = 1e9, -1.0  # margins
# Sums of one token and of several have other orders, so a rounded activation may differ by a step.
# Such a step moved logits by up to 0.025 and keys by 0.04, and int4 moves them by 0.04 to 0.4.
SHARE_OF_INT4 = 0.5
STEP = 0.05


@pytest.fixture(scope="module")
def fast(variants_package: Path) -> Iterator[FastVLM]:
    skip_without("fast")
    with fastvlm_onnx.load(variants_package, precision="fast", providers="cpu") as model:
        yield model


class CountingDecoder(Decoder):
    """A real decoder that keeps the number of positions of each second pass."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.passes: list[int] = []

    def _run_again(self, cache: KVCache, is_greedy: bool) -> None:
        self.passes.append(len(cache.steps))
        super()._run_again(cache, is_greedy)


def decoder_with(model: FastVLM, margin: float, positions: int = 8) -> CountingDecoder:
    """The model's graphs with another second pass."""
    decoder, sessions = model.language_model.decoder, model.sessions
    head = ScreenedHead(
        sessions[LM_HEAD], sessions[LM_HEAD_SCREEN], model.language_model.sizes.vocab_size
    )
    return CountingDecoder(
        decoder.session, decoder.sizes, sessions[PREFILL], head, SecondPass(margin, positions)
    )


def inputs(model: FastVLM, picture: Path, answer: str) -> tuple[NDArray[Any], list[int]]:
    components = model.components()
    features = components.image_encoder.encode(components.image_encoder.read(picture))
    parts = components.template.prompt(question(PROMPT, num_images=1))
    return components.embed(parts, [features]), components.template.tokenizer.encode(answer)


def run_steps(
    model: FastVLM, decoder: Decoder, prompt: NDArray[Any], tokens: list[int]
) -> tuple[NDArray[np.float32], KVCache]:
    """Logits before each token and after the last, and the cache."""
    cache = decoder.new_cache(prompt.shape[1] + len(tokens) + 1)
    logits = [decoder.run(prompt, cache).copy()]
    for token in tokens:
        embeds = model.language_model.embed_tokens([token])[None]
        logits.append(decoder.run(embeds, cache).copy())
    return np.stack(logits), cache


@pytest.fixture
def steps(fast: FastVLM, picture: Path) -> tuple[NDArray[Any], list[int]]:
    return inputs(fast, picture, "a red circle and a blue square and a green star.")


def whole_prompt(
    model: FastVLM, prompt: NDArray[Any], tokens: list[int]
) -> tuple[NDArray[np.float32], KVCache]:
    """Logits of the last position, and the cache, where the prefill graph runs everything."""
    decoder = decoder_with(model, NEVER)
    cache = decoder.new_cache(prompt.shape[1] + len(tokens))
    embeds = model.language_model.embed_tokens(tokens)[None]
    return decoder.run(np.concatenate([prompt, embeds], axis=1), cache).copy(), cache


@pytest.mark.parametrize("positions", [1, 3, 100])
def test_an_unsure_step_has_the_logits_of_the_prefill_graph(
    fast: FastVLM, steps: tuple[NDArray[Any], list[int]], positions: int
) -> None:
    prompt, tokens = steps
    decoder = decoder_with(fast, ALWAYS, positions)
    logits, cache = run_steps(fast, decoder, prompt, tokens)
    expected, filled = whole_prompt(fast, prompt, tokens)
    int4, unchanged = run_steps(fast, decoder_with(fast, NEVER), prompt, tokens)
    of_int4 = relative_error(int4[-1], expected)
    assert relative_error(logits[-1], expected) < SHARE_OF_INT4 * of_int4
    length, first = cache.length, prompt.shape[1]
    values = [each.read(first, length) for each in (cache, unchanged, filled)]
    of_int4 = relative_error(values[1], values[2])
    assert relative_error(values[0], values[2]) < SHARE_OF_INT4 * of_int4
    # The prompt is the prefill graph's already.
    assert decoder.passes == [1] * len(tokens)


def test_sure_steps_are_those_of_the_decoder_alone(
    fast: FastVLM, steps: tuple[NDArray[Any], list[int]]
) -> None:
    decoder = decoder_with(fast, NEVER)
    logits, _ = run_steps(fast, decoder, *steps)
    alone = Decoder(decoder.session, decoder.sizes, decoder.prefill_session, decoder._lm_head)
    np.testing.assert_array_equal(logits, run_steps(fast, alone, *steps)[0])
    assert decoder.passes == []


@pytest.mark.parametrize(("positions", "expected"), [(3, [3]), (100, [12])])
def test_a_second_pass_replaces_the_steps_before(
    fast: FastVLM, steps: tuple[NDArray[Any], list[int]], positions: int, expected: list[int]
) -> None:
    prompt, tokens = steps[0], steps[1][:12]
    decoder = decoder_with(fast, NEVER, positions)
    _, cache = run_steps(fast, decoder, prompt, tokens[:-1])
    decoder._second_pass = SecondPass(ALWAYS, positions)
    before = cache.read(0, cache.length)
    decoder.run(fast.language_model.embed_tokens(tokens[-1:])[None], cache)
    assert (decoder.passes, len(cache.steps)) == (expected, 0)
    after, length = cache.read(0, cache.length), prompt.shape[1] + len(tokens)
    assert cache.length == length
    changed = np.flatnonzero((after[:, :, : length - 1] != before).any(axis=(0, 1, 3)))
    first = max(prompt.shape[1], length - positions)
    assert changed.tolist() == list(range(first, length - 1))


def test_the_margin_decides(fast: FastVLM, steps: tuple[NDArray[Any], list[int]]) -> None:
    prompt, tokens = steps[0], steps[1][:1]
    int4, _ = run_steps(fast, decoder_with(fast, NEVER), prompt, tokens)
    second, first = np.partition(int4[-1], -2)[-2:]
    for margin, expected in ((first - second - 1e-3, []), (first - second + 1e-3, [1])):
        decoder = decoder_with(fast, float(margin))
        run_steps(fast, decoder, prompt, tokens)
        assert decoder.passes == expected


@pytest.mark.parametrize("is_greedy", [True, False])
def test_a_row_of_a_batch_is_run_again_without_its_neighbours(
    fast: FastVLM, picture: Path, is_greedy: bool
) -> None:
    answers = ["a red circle and a blue", "There is nothing in the", "a green star, a pink"]
    sequences = [inputs(fast, picture, answer) for answer in answers]
    sequences = [(prompt, tokens[:5]) for prompt, tokens in sequences]
    # A margin that some rows of a step are above, and some below.
    int4 = np.stack([run_steps(fast, decoder_with(fast, NEVER), *each)[0] for each in sequences])
    leads = np.diff(np.partition(int4[:, 1:], -2)[..., -2:])[..., 0]
    # Sums of a row and of a batch have other orders, so the margin is far from every lead.
    middle = np.sort(leads.ravel())[4:11]
    widest = int(np.diff(middle).argmax())
    margin = float(middle[widest : widest + 2].mean())
    alone, passes = [], []
    for prompt, tokens in sequences:
        decoder = decoder_with(fast, margin)
        alone.append(run_steps(fast, decoder, prompt, tokens)[0])
        passes += decoder.passes

    decoder = decoder_with(fast, margin)
    batch = decoder.new_batch()
    for prompt, _ in sequences:
        row = batch.new_row(prompt.shape[1] + 5)
        decoder.run(prompt, row)
        batch.admit(row)
    for step in range(5):
        ids = [tokens[step] for _, tokens in sequences]
        embeds = fast.language_model.embed_tokens(ids)[:, None]
        logits = decoder.run_batch(embeds, batch, [is_greedy] * 3)
        for row in range(3):
            is_known = np.isfinite(logits[row])
            expected = alone[row][step + 1]
            assert relative_error(logits[row][is_known], expected[is_known]) < STEP
    assert sorted(decoder.passes) == sorted(passes)
    assert 0 < len(passes) < 15


def test_rows_keep_their_steps_when_others_leave(fast: FastVLM, picture: Path) -> None:
    decoder = decoder_with(fast, NEVER)
    batch = decoder.new_batch()
    prompt, tokens = inputs(fast, picture, "a red circle and a blue square")
    for _ in range(3):
        row = batch.new_row(prompt.shape[1] + 4)
        decoder.run(prompt, row)
        batch.admit(row)
    for step in range(2):
        ids = [tokens[step], tokens[step + 1], tokens[step + 2]]
        decoder.run_batch(fast.language_model.embed_tokens(ids)[:, None], batch)
    batch.keep([0, 2])
    kept = [np.concatenate(batch.row(row).steps, axis=1)[0] for row in range(2)]
    for steps, first in zip(kept, (0, 2), strict=True):
        expected = fast.language_model.embed_tokens(tokens[first : first + 2])
        np.testing.assert_array_equal(steps, expected)


def test_a_cache_that_is_cut_back_forgets_its_steps(
    fast: FastVLM, steps: tuple[NDArray[Any], list[int]]
) -> None:
    decoder = decoder_with(fast, NEVER)
    _, cache = run_steps(fast, decoder, steps[0], steps[1][:4])
    assert len(cache.steps) == 4
    cache.truncate(cache.length - 2)
    assert len(cache.steps) == 0


def test_only_fast_has_a_second_pass(variants_package: Path) -> None:
    variants = read_manifest(variants_package).variants
    found = {name for name, variant in variants.items() if variant.second_pass}
    assert found == {"fast"} & set(variants)
    if "fast" in variants:
        assert variants["fast"].second_pass == VARIANTS["fast"].second_pass
