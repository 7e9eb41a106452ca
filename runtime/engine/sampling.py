"""Sampling: logits -> token id."""

import numpy as np
from numpy.typing import NDArray

from fastvlm_onnx.runtime.engine.constraint import TokenConstraint
from fastvlm_onnx.runtime.engine.options import GenerationConfig, TopLogprobs


class Sampler:
    """Draws the tokens of one answer.

    Attributes:
        logprobs: natural logarithm of each drawn token's probability in the model's own
            distribution, before penalty, constraint and temperature; None where they were not asked
            for.
        top_logprobs: the most probable tokens at each draw with their logarithms, the most probable
            first; None where they were not asked for.

    Source: the order of transformers 4.48.3's processors: repetition penalty, temperature, top-k,
    top-p, min-p.
    """

    def __init__(self, config: GenerationConfig, constraint: TokenConstraint | None = None) -> None:
        """Begin an answer.

        Args:
            constraint: follows this answer alone; any token may be drawn when None.
        """
        self._config, self._constraint = config, constraint
        self._rng = np.random.default_rng(config.seed)
        self._drawn: set[int] = set()
        self.logprobs: list[float] | None = [] if config.logprobs else None
        self.top_logprobs: list[TopLogprobs] | None = [] if config.top_logprobs else None

    def __call__(self, logits: NDArray[np.float32]) -> int:
        """A token id from logits float32 [vocab_size].

        Raises:
            InputError: the constraint takes more work than its limits allow.
        """
        token_id = self._draw_allowed(self._penalised(logits))
        self._drawn.add(token_id)
        self._record(logits, token_id)
        return token_id

    def _record(self, logits: NDArray[np.float32], token_id: int) -> None:
        if self.logprobs is None and self.top_logprobs is None:
            return
        shifted = logits.astype(np.float64) - logits.max()
        logprobs = shifted - np.log(np.exp(shifted).sum())
        if self.logprobs is not None:
            self.logprobs.append(float(logprobs[token_id]))
        if self.top_logprobs is not None:
            count = min(self._config.top_logprobs, len(logits))
            most = np.argpartition(logprobs, -count)[-count:]
            most = most[np.argsort(-logprobs[most], kind="stable")]
            self.top_logprobs.append([(int(i), float(logprobs[i])) for i in most])

    def _penalised(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        penalty = np.float32(self._config.repetition_penalty)
        if penalty == 1 or not self._drawn:
            return logits
        ids = np.array(sorted(self._drawn))
        changed = logits.copy()
        changed[ids] = np.where(logits[ids] > 0, logits[ids] / penalty, logits[ids] * penalty)
        return changed

    def _draw_allowed(self, logits: NDArray[np.float32]) -> int:
        if self._constraint is None:
            return self._draw(logits)
        is_allowed = self._constraint.allowed_tokens()
        token_id = int(logits.argmax())
        # Most often the most probable token is allowed; to pick out 150,000 others takes 0.3 ms.
        if self._config.temperature > 0 or not is_allowed[token_id]:
            # Top-k and top-p choose among the tokens that are allowed.
            allowed = np.flatnonzero(is_allowed)
            token_id = int(allowed[self._draw(logits[allowed])])
        self._constraint.consume(token_id)
        return token_id

    def _draw(self, logits: NDArray[np.float32]) -> int:
        config = self._config
        if config.temperature == 0:
            return int(logits.argmax())
        ids = np.arange(len(logits))
        if 0 < config.top_k < len(logits):
            # As in transformers, tokens that tie with the k-th stay in.
            kth = np.partition(logits, -config.top_k)[-config.top_k]
            ids = np.flatnonzero(logits >= kth)
        ids = ids[np.argsort(-logits[ids], kind="stable")]
        shifted = logits[ids].astype(np.float64) - logits[ids[0]]
        # A temperature near 0 leaves the most probable token alone.
        with np.errstate(over="ignore"):
            probabilities = np.exp(shifted / config.temperature)
        probabilities /= probabilities.sum()
        kept = len(ids)
        if config.top_p < 1:
            before = np.cumsum(probabilities) - probabilities
            kept = int((before < config.top_p).sum())
        if config.min_p > 0:
            likely = int((probabilities >= config.min_p * probabilities[0]).sum())
            kept = min(kept, likely)
        ids, probabilities = ids[:kept], probabilities[:kept] / probabilities[:kept].sum()
        return int(self._rng.choice(ids, p=probabilities))
