"""The screen before lm_head: a greedy answer has the tokens of lm_head in int8."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from installed_onnxruntime import skip_without
from numpy.typing import NDArray

import fastvlm_onnx
from fastvlm_onnx import FastVLM
from fastvlm_onnx.names import DECODER, HIDDEN_STATES, LM_HEAD, LM_HEAD_SCREEN, LOGITS
from fastvlm_onnx.package import read_manifest
from fastvlm_onnx.runtime.engine.lm_head import SAFE_MARGIN, ScreenedHead, is_safe
from fastvlm_onnx.runtime.engine.options import GenerationConfig

PROMPT = "Describe the image."


@pytest.fixture(scope="module")
def fast(variants_package: Path) -> FastVLM:
    skip_without("fast")
    return fastvlm_onnx.load(variants_package, precision="fast", providers="cpu")


class Counted:
    """A real graph that counts its runs."""

    def __init__(self, session: Any) -> None:
        self._session, self.runs = session, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, outputs: Sequence[str] | None, feeds: Mapping[str, NDArray[Any]]) -> list[Any]:
        self.runs += 1
        return self._session.run(outputs, feeds)


def counted_head(model: FastVLM) -> tuple[ScreenedHead, Counted, Counted]:
    lm_head, screen = (Counted(model.sessions[name]) for name in (LM_HEAD, LM_HEAD_SCREEN))
    sizes = model.language_model.sizes
    return ScreenedHead(lm_head, screen, sizes.vocab_size), lm_head, screen


def hidden_states(model: FastVLM, rows: int, seed: int = 0) -> NDArray[np.float32]:
    width = model.language_model.sizes.hidden_size
    return np.random.default_rng(seed).standard_normal((rows, 1, width), np.float32)


def test_a_greedy_row_has_the_choice_of_all_logits(fast: FastVLM) -> None:
    head, _, _ = counted_head(fast)
    states = hidden_states(fast, rows=200)
    (full,) = fast.sessions[LM_HEAD].run([LOGITS], {HIDDEN_STATES: states})
    found = np.full_like(full, np.nan)
    for row in range(len(states)):
        head.compute(states[row : row + 1], found[row : row + 1], [True])
    np.testing.assert_array_equal(found.argmax(-1), full.argmax(-1))


def test_rows_that_need_all_logits_get_them_beside_greedy_rows(fast: FastVLM) -> None:
    head, lm_head, screen = counted_head(fast)
    states = hidden_states(fast, rows=4)
    (full,) = fast.sessions[LM_HEAD].run([LOGITS], {HIDDEN_STATES: states})
    found = np.full_like(full, np.nan)
    head.compute(states, found, [True, False, True, False])
    np.testing.assert_allclose(found[[1, 3]], full[[1, 3]], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.argmax(-1), full.argmax(-1))
    assert (lm_head.runs, screen.runs >= 1) == (1, True)


def test_a_row_without_a_clear_choice_gets_all_logits(fast: FastVLM) -> None:
    head, lm_head, _ = counted_head(fast)
    # All tokens have a logit of zero.
    states = np.zeros_like(hidden_states(fast, rows=1))
    found = np.full((1, 1, fast.language_model.sizes.vocab_size), np.nan, np.float32)
    head.compute(states, found, [True])
    assert np.isfinite(found).any()
    # Hidden states that are not numbers give no choice.
    states[:] = np.nan
    head.compute(states, found, [True])
    assert lm_head.runs == 1
    assert np.isnan(found).all()


def test_a_margin_is_safe_beyond_the_errors_of_the_candidates() -> None:
    error = np.float32(0.25)
    rough = np.array([[5.0, 3.0, 2.0]], np.float32)
    exact = rough + np.array([[error, -error, error]], np.float32)
    limit = SAFE_MARGIN * error
    exact[0, 0] = 2 + limit + 0.01
    rough[0, 0] = exact[0, 0] - error
    assert is_safe(exact, rough).tolist() == [True]
    exact[0, 0] = 2 + limit - 0.01
    rough[0, 0] = exact[0, 0] - error
    assert is_safe(exact, rough).tolist() == [False]


def test_lm_head_is_opened_when_all_logits_are_first_needed(
    variants_package: Path, picture: Path
) -> None:
    skip_without("fast")
    model = fastvlm_onnx.load(variants_package, precision="fast", providers="cpu")
    greedy = model.generate(picture, PROMPT)
    assert model.sessions[LM_HEAD]._session is None
    measured = model.generate(picture, PROMPT, logprobs=True)
    assert model.sessions[LM_HEAD]._session is not None
    assert measured.token_ids == greedy.token_ids
    assert all(np.isfinite(measured.logprobs or [np.nan]))


def test_greedy_and_sampled_answers_are_the_same_in_a_batch(fast: FastVLM, picture: Path) -> None:
    greedy = fast.generate_batch([picture, picture], PROMPT)
    sampled = fast.generate_batch([picture, picture], PROMPT, temperature=1e-9, top_k=0)
    assert [g.token_ids for g in greedy] == [g.token_ids for g in sampled]
    assert greedy[0].token_ids == fast.generate(picture, PROMPT).token_ids


@pytest.mark.parametrize(
    ("options", "is_greedy"),
    [
        ({}, True),
        ({"top_k": 5, "top_p": 0.5, "min_p": 0.1}, True),
        ({"temperature": 0.1}, False),
        ({"repetition_penalty": 1.1}, False),
        ({"logprobs": True}, False),
        ({"top_logprobs": 1}, False),
        ({"choices": ["yes", "no"]}, False),
    ],
)
def test_only_options_that_read_the_largest_logit_alone_are_greedy(
    options: dict[str, Any], is_greedy: bool
) -> None:
    assert GenerationConfig(**options).is_greedy is is_greedy


def test_parts_of_a_decoder_are_for_the_cpu(variants_package: Path) -> None:
    variant = read_manifest(variants_package).variants["fast"]
    assert variant.split_decoder is not None
    assert variant.on_providers({}).split_decoder == variant.split_decoder
    assert variant.on_providers({DECODER: "cpu"}).split_decoder == variant.split_decoder
    assert variant.on_providers({DECODER: "cuda"}).split_decoder is None
