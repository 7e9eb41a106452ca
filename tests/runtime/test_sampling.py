import numpy as np
import pytest

from fastvlm_onnx import InputError
from fastvlm_onnx.runtime.engine.options import GenerationConfig
from fastvlm_onnx.runtime.engine.sampling import Sampler

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.25, 0.05], np.float32))


def drawn(settings: GenerationConfig, times: int = 3000) -> np.ndarray:
    """How often each token comes up, as shares of all draws."""
    sample = Sampler(settings)
    ids = [sample(LOGITS) for _ in range(times)]
    return np.bincount(ids, minlength=len(LOGITS)) / times


def test_temperature_zero_takes_the_likeliest() -> None:
    assert Sampler(GenerationConfig())(LOGITS) == 1


def test_draws_follow_the_probabilities() -> None:
    shares = drawn(GenerationConfig(temperature=1.0, seed=1))
    np.testing.assert_allclose(shares, np.exp(LOGITS), atol=0.03)


def test_temperature_sharpens_before_anything_is_cut() -> None:
    shares = drawn(GenerationConfig(temperature=0.5, top_k=2, seed=1))
    np.testing.assert_allclose(shares[[1, 3]], np.array([16, 6.25]) / 22.25, atol=0.03)


def test_top_k_keeps_the_k_likeliest() -> None:
    assert (drawn(GenerationConfig(temperature=1.0, top_k=2, seed=1)) > 0).tolist() == [
        0,
        1,
        0,
        1,
        0,
    ]


def test_top_k_keeps_ties_with_the_last() -> None:
    sample = Sampler(GenerationConfig(temperature=1.0, top_k=1, seed=1))
    assert {sample(np.array([2, 2, 1], np.float32)) for _ in range(50)} == {0, 1}


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    # 0.4 + 0.25 reach 0.6; of what top-k leaves, renormalised, the same two do.
    assert (drawn(GenerationConfig(temperature=1.0, top_p=0.6, seed=1)) > 0).tolist() == [
        0,
        1,
        0,
        1,
        0,
    ]
    kept = drawn(GenerationConfig(temperature=1.0, top_k=3, top_p=0.75, seed=1)) > 0
    assert kept.tolist() == [0, 1, 0, 1, 0]


def test_top_p_always_keeps_one() -> None:
    assert drawn(GenerationConfig(temperature=1.0, top_p=1e-9, seed=1), 20)[1] == 1


@pytest.mark.parametrize("temperature", [1e-30, 5e-324])
def test_a_temperature_next_to_zero_is_greedy(temperature: float) -> None:
    assert drawn(GenerationConfig(temperature=temperature, top_p=0.9, seed=1), 20)[1] == 1


def test_one_seed_draws_the_same_tokens_again() -> None:
    first, again = (Sampler(GenerationConfig(temperature=1.0, seed=7)) for _ in range(2))
    assert [first(LOGITS) for _ in range(50)] == [again(LOGITS) for _ in range(50)]


def test_without_a_seed_each_answer_is_drawn_anew() -> None:
    first, other = (Sampler(GenerationConfig(temperature=1.0)) for _ in range(2))
    assert [first(LOGITS) for _ in range(50)] != [other(LOGITS) for _ in range(50)]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("seed", -1),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{field} is {value}"):
        GenerationConfig(**{field: value})


class FixedTokens:
    """A stand-in for a matcher: the same tokens are allowed at every step."""

    is_complete = False

    def __init__(self, allowed: list[int]) -> None:
        self.allowed, self.consumed = allowed, []

    def allowed_tokens(self) -> np.ndarray:
        return np.isin(np.arange(len(LOGITS)), self.allowed)

    def consume(self, token_id: int) -> None:
        self.consumed.append(token_id)


@pytest.mark.parametrize("allowed", [[0], [1], [0, 2], [0, 1, 2, 3]])
def test_the_most_probable_allowed_token_is_taken(allowed: list[int]) -> None:
    constraint = FixedTokens(allowed)
    best = max(allowed, key=lambda token_id: LOGITS[token_id])
    assert Sampler(GenerationConfig(), constraint)(LOGITS) == best
    assert constraint.consumed == [best]


@pytest.mark.parametrize("top_k", [0, 2, 3])
def test_top_k_counts_the_allowed_tokens(top_k: int) -> None:
    constraint = FixedTokens([0, 2, 3])
    sample = Sampler(GenerationConfig(temperature=5.0, top_k=top_k, seed=1), constraint)
    drawn = [sample(LOGITS) for _ in range(300)]
    order = sorted([0, 2, 3], key=lambda token_id: -LOGITS[token_id])
    assert set(drawn) == set(order[: top_k or 3])
    assert constraint.consumed == drawn
