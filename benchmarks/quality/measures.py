"""The measures of one system: its distributions beside fp32's, over all sequences."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from quality.job import FloatArray, ForcedSequence
from quality.reference import Reference
from quality.worker import read_rows

from fastvlm_onnx.export.verification.metrics import (
    kl_divergences,
    log_probabilities,
    perplexity,
    same_first_choices,
    summarise_divergences,
)


@dataclass(frozen=True)
class SequenceMeasures:
    """A system along one sequence.

    Attributes:
        id: the prompt's id.
        kind: "answer" or "text".
        divergences: KL divergences from fp32 in nats, float64 [steps].
        same: whether the first choice is fp32's, bool [steps].
        log_probs: log-probabilities of the forced tokens, float64 [steps].
    """

    id: str
    kind: str
    divergences: NDArray[np.float64]
    same: NDArray[np.bool_]
    log_probs: NDArray[np.float64]


def compare(sequence: ForcedSequence, found: FloatArray, expected: FloatArray) -> SequenceMeasures:
    """Compare the logits along one sequence, float32 [steps, vocab_size]."""
    return SequenceMeasures(
        sequence.id,
        sequence.kind,
        kl_divergences(found, expected),
        same_first_choices(found, expected),
        log_probabilities(found, sequence.forced),
    )


def compare_all(pipe: BinaryIO, reference: Reference) -> list[SequenceMeasures]:
    """Compare the logits that a worker writes with fp32's.

    Raises:
        EOFError: the worker wrote too few logits.
    """
    return [
        compare(sequence, read_rows(pipe, *expected.shape), expected)
        for sequence, expected in reference.each()
    ]


def summarise(measured: Sequence[SequenceMeasures]) -> dict[str, Any]:
    """Return the figures of a system's row: counts, divergences in nats, perplexities."""
    answers = [found for found in measured if found.kind == "answer"]
    texts = [found for found in measured if found.kind == "text"]
    return {
        **summarise_steps(answers),
        "answer_perplexity": _perplexity(answers),
        "text_perplexity": _perplexity(texts),
    }


def summarise_steps(measured: Iterable[SequenceMeasures]) -> dict[str, Any]:
    """Return steps, agreeing steps and divergences over some sequences, at least one."""
    found = list(measured)
    divergence = summarise_divergences(np.concatenate([item.divergences for item in found]))
    return {
        "steps": sum(len(item.same) for item in found),
        "agreeing_steps": int(sum(item.same.sum() for item in found)),
        "kl_divergence": divergence.mean,
        "kl_divergence_99": divergence.percentile_99,
        "max_kl_divergence": divergence.largest,
    }


def _perplexity(measured: Sequence[SequenceMeasures]) -> float | None:
    if not measured:
        return None
    return perplexity(np.concatenate([item.log_probs for item in measured]))
