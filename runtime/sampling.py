"""logits -> token id."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastvlm_onnx.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; temperature 0 takes the likeliest.

    Attributes:
        temperature: divides the logits; 0 is greedy.
        top_k: keep so many of the likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens whose probabilities reach this sum; 1 keeps all.
        seed: repeats a draw exactly on one machine; None draws anew each time.
    """

    temperature: float = 0.0
    top_k: int = 50
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature is {self.temperature}; expected 0 or more.")
        if self.top_k < 0:
            raise InputError(f"top_k is {self.top_k}; expected 0 (off) or more.")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}; expected above 0 and at most 1.")
        if self.seed is not None and self.seed < 0:
            raise InputError(f"seed is {self.seed}; expected 0 or more.")


class Sampler:
    """Draws one token after another; one for each answer.

    Source: the order of transformers 4.48.3's processors, temperature, top-k, top-p.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._rng = np.random.default_rng(sampling.seed)

    def __call__(self, logits: NDArray[np.float32]) -> int:
        """A token id from logits float32 [vocab_size]."""
        sampling = self._sampling
        if sampling.temperature == 0:
            return int(logits.argmax())
        ids = np.arange(len(logits))
        if 0 < sampling.top_k < len(logits):
            # Like transformers, every token that ties with the k-th stays in.
            kth = np.partition(logits, -sampling.top_k)[-sampling.top_k]
            ids = np.flatnonzero(logits >= kth)
        ids = ids[np.argsort(-logits[ids], kind="stable")]
        behind = logits[ids].astype(np.float64) - logits[ids[0]]
        with np.errstate(over="ignore"):  # a temperature near 0 leaves only the likeliest
            probabilities = np.exp(behind / sampling.temperature)
        probabilities /= probabilities.sum()
        if sampling.top_p < 1:
            before = np.cumsum(probabilities) - probabilities
            kept = int((before < sampling.top_p).sum())
            ids, probabilities = ids[:kept], probabilities[:kept] / probabilities[:kept].sum()
        return int(self._rng.choice(ids, p=probabilities))
