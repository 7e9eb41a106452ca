"""lm_head in two forms: all logits, or the largest logit found by a screen.

The screen (an lm_head in int4) takes 3.1 ms for the 0.5B where lm_head in int8 takes 5.2. It gives
some candidates, and their logits in int8 and in int4. A token outside them has at most the smallest
int4 logit of a candidate, so it can have the largest int8 logit only if its int4 logit is further
off than that. The candidates show how far int4 logits are off. Where that is too far, there are
more candidates, and at last all tokens.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fastvlm_onnx.names import (
    HIDDEN_STATES,
    LOGITS,
    NUM_CANDIDATES,
    SCREENED_LOGITS,
    TOKEN_IDS,
    TOKEN_LOGITS,
)
from fastvlm_onnx.runtime.arrays import FloatArray
from fastvlm_onnx.runtime.ort.session import GraphRunner

# docs/quantisation.md says how often the first number is enough.
CANDIDATES: Final = (64, 1024)
# A token outside the candidates would have to be off by this many times the candidates' root mean
# square. docs/quantisation.md has the count of such steps.
SAFE_MARGIN: Final = 8.0


class ScreenedHead:
    """lm_head for rows of hidden states; any number of threads may use it."""

    def __init__(self, lm_head: GraphRunner, screen: GraphRunner, vocab_size: int) -> None:
        """Take the graphs.

        Args:
            lm_head: hidden states to all logits.
            screen: hidden states to the likeliest tokens and their logits.
            vocab_size: the number of tokens.
        """
        self._lm_head, self._screen, self._vocab_size = lm_head, screen, vocab_size

    def compute(
        self, hidden_states: FloatArray, logits: FloatArray, is_greedy: Sequence[bool]
    ) -> None:
        """Compute logits.

        Args:
            hidden_states: float32 [rows, 1, hidden_size], contiguous.
            logits: takes the result, float32 [rows, 1, vocab_size]. A greedy row may get the
                logits of the likeliest tokens alone, and minus infinity for the others.
            is_greedy: for each row, whether only its largest logit is needed.

        Raises:
            ProviderError: the provider failed.
        """
        greedy, others = np.flatnonzero(is_greedy), np.flatnonzero(np.logical_not(is_greedy))
        for count in CANDIDATES:
            if not len(greedy):
                break
            tokens, exact, rough = self._candidates(hidden_states[greedy], count)
            logits[greedy] = -np.inf
            logits[greedy[:, None], 0, tokens] = exact
            greedy = greedy[~is_safe(exact, rough)]
        others = np.concatenate([others, greedy])
        if len(others):
            (logits[others],) = self._lm_head.run([LOGITS], {HIDDEN_STATES: hidden_states[others]})

    def _candidates(self, hidden_states: FloatArray, count: int) -> list[NDArray[Any]]:
        """Return the likeliest tokens and their logits in int8 and int4, each [rows, count]."""
        feeds = {
            HIDDEN_STATES: hidden_states,
            NUM_CANDIDATES: np.array([min(count, self._vocab_size)]),
        }
        found = self._screen.run([TOKEN_IDS, TOKEN_LOGITS, SCREENED_LOGITS], feeds)
        return [array[:, 0] for array in found]


def is_safe(exact: FloatArray, rough: FloatArray) -> NDArray[np.bool_]:
    """Return whether the largest exact logit is above that of every token outside the candidates.

    Args:
        exact: the candidates' logits in int8, float32 [rows, candidates].
        rough: the candidates' logits in int4, the largest of their row, in the same shape.

    Returns:
        bool [rows].
    """
    error = np.sqrt(np.square(exact - rough).mean(axis=1))
    return exact.max(axis=1) - rough.min(axis=1) >= SAFE_MARGIN * error
