"""logits -> token id."""

import numpy as np
from numpy.typing import NDArray

from fastvlm_onnx.runtime.engine.options import Settings


class Sampler:
    """Draws one token after another; one for each answer.

    Attributes:
        logprobs: natural logarithm of each drawn token's probability in the model's own
            distribution, before penalty and temperature; None unless asked for.

    Source: the order of transformers 4.48.3's processors: repetition penalty, temperature, top-k,
    top-p, min-p.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._rng = np.random.default_rng(settings.seed)
        self._drawn: set[int] = set()
        self.logprobs: list[float] | None = [] if settings.logprobs else None

    def __call__(self, logits: NDArray[np.float32]) -> int:
        """A token id from logits float32 [vocab_size]."""
        token_id = self._draw(self._penalised(logits))
        self._drawn.add(token_id)
        if self.logprobs is not None:
            behind = logits.astype(np.float64) - logits.max()
            self.logprobs.append(float(behind[token_id] - np.log(np.exp(behind).sum())))
        return token_id

    def _penalised(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        penalty = np.float32(self._settings.repetition_penalty)
        if penalty == 1 or not self._drawn:
            return logits
        ids = np.array(sorted(self._drawn))
        changed = logits.copy()
        changed[ids] = np.where(logits[ids] > 0, logits[ids] / penalty, logits[ids] * penalty)
        return changed

    def _draw(self, logits: NDArray[np.float32]) -> int:
        settings = self._settings
        if settings.temperature == 0:
            return int(logits.argmax())
        ids = np.arange(len(logits))
        if 0 < settings.top_k < len(logits):
            # Like transformers, every token that ties with the k-th stays in.
            kth = np.partition(logits, -settings.top_k)[-settings.top_k]
            ids = np.flatnonzero(logits >= kth)
        ids = ids[np.argsort(-logits[ids], kind="stable")]
        behind = logits[ids].astype(np.float64) - logits[ids[0]]
        with np.errstate(over="ignore"):  # a temperature near 0 leaves only the likeliest
            probabilities = np.exp(behind / settings.temperature)
        probabilities /= probabilities.sum()
        kept = len(ids)
        if settings.top_p < 1:
            before = np.cumsum(probabilities) - probabilities
            kept = int((before < settings.top_p).sum())
        if settings.min_p > 0:
            likely = int((probabilities >= settings.min_p * probabilities[0]).sum())
            kept = min(kept, likely)
        ids, probabilities = ids[:kept], probabilities[:kept] / probabilities[:kept].sum()
        return int(self._rng.choice(ids, p=probabilities))
