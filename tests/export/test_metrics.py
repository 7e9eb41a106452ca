"""The distances that `verify` and the benchmarks report."""

import numpy as np
import pytest
import torch

from fastvlm_onnx.agreement import PromptAgreement
from fastvlm_onnx.export.verification import metrics
from fastvlm_onnx.export.verification.comparison import compare_answers


def compare(found: np.ndarray, expected: np.ndarray) -> PromptAgreement:
    divergences = metrics.kl_divergences(found, expected)
    return compare_answers("a.png", "Which?", found, expected, divergences)


def test_distances_are_those_of_torch() -> None:
    rng = np.random.default_rng(4)
    expected, noise = (rng.standard_normal((5, 400)).astype(np.float32) * 6 for _ in range(2))
    found = expected + noise / 10
    p, q = (torch.from_numpy(a).double().log_softmax(-1) for a in (expected, found))
    kl = torch.nn.functional.kl_div(q, p, log_target=True, reduction="batchmean")
    cosine = torch.cosine_similarity(*(torch.from_numpy(a).ravel() for a in (found, expected)), 0)
    divergences = metrics.kl_divergences(found, expected)
    assert divergences.mean() == pytest.approx(float(kl), rel=1e-9)
    assert metrics.cosine(found, expected) == pytest.approx(float(cosine), rel=1e-6)
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert metrics.relative_error(found, expected) == pytest.approx(float(error), rel=1e-6)


def test_a_scale_shows_in_the_relative_error_and_not_in_the_cosine() -> None:
    expected = np.linspace(-1, 1, 99, dtype=np.float32)
    assert metrics.relative_error(expected * 1.25, expected) == pytest.approx(0.25)
    assert metrics.cosine(expected * 1.25, expected) == pytest.approx(1.0)


def test_metrics_against_an_all_zero_reference() -> None:
    black, grey = np.zeros((1, 4), np.float32), np.full((1, 4), 0.5, np.float32)
    assert (metrics.relative_error(black, black), metrics.cosine(black, black)) == (0.0, 1.0)
    assert (metrics.relative_error(grey, black), metrics.cosine(grey, black)) == (None, None)


def test_the_99th_percentile_leaves_out_the_largest_step_of_a_thousand() -> None:
    summary = metrics.summarise_divergences(np.array([5.0] + [0.25] * 999))
    assert summary.percentile_99 == 0.25
    assert summary.largest == 5.0
    assert summary.mean == pytest.approx((5 + 0.25 * 999) / 1000)


def test_one_divergence_that_is_not_finite_leaves_no_summary() -> None:
    summary = metrics.summarise_divergences(np.array([0.1, np.nan, 0.2]))
    assert summary == metrics.DivergenceSummary(None, None, None)


def test_a_uniform_distribution_has_the_perplexity_of_its_size() -> None:
    logits = np.full((3, 50), 7, np.float32)
    found = metrics.log_probabilities(logits, [0, 20, 49])
    assert metrics.perplexity(found) == pytest.approx(50)


def test_the_perplexity_is_that_of_torch() -> None:
    logits = np.random.default_rng(5).standard_normal((6, 40)).astype(np.float32)
    token_ids = [3, 0, 39, 3, 7, 21]
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.tensor(token_ids))
    found = metrics.perplexity(metrics.log_probabilities(logits, token_ids))
    assert found == pytest.approx(float(loss.exp()), rel=1e-5)


def test_a_flip_between_two_equal_logits_is_a_tie() -> None:
    expected = np.array([[1, 8, 8 - 1e-4, 0], [1, 2, 3, 4], [4, 3, 2, 1]], np.float32)
    found = expected.copy()
    found[0, 2] += 1e-3
    row = compare(found, expected)
    assert (row.steps, row.agreeing_steps, row.tied_steps) == (3, 2, 1)
    assert row.first_difference == 1
    assert row.reference_gap == pytest.approx(1e-4, rel=0.01)


def test_a_flip_between_clear_logits_is_no_tie() -> None:
    expected = np.array([[1, 2, 3, 4], [4, 3, 2, 1]], np.float32)
    row = compare(expected[[0, 0]], expected)
    assert (row.agreeing_steps, row.tied_steps, row.first_difference) == (1, 0, 2)
    assert row.reference_gap == 1.0
