"""The constraint of one answer: which tokens may come next."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class TokenConstraint(Protocol):
    """Follows one answer, and knows the tokens that may continue it."""

    def allowed_tokens(self) -> NDArray[np.bool_]:
        """The tokens that may come next, bool [vocab_size]; at least one is True.

        Raises:
            InputError: the constraint takes more work than its limits allow.
        """
        ...

    def consume(self, token_id: int) -> None:
        """Add a token to the answer.

        Args:
            token_id: a token that `allowed_tokens` allows.

        Raises:
            InputError: the constraint takes more work than its limits allow.
        """
        ...

    @property
    def is_complete(self) -> bool:
        """The answer is whole, and nothing but an end token may come."""
        ...
