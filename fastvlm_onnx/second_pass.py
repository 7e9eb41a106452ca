"""When the prefill graph runs the last positions of an answer again. Standard library only."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SecondPass:
    """When the prefill graph runs the last positions of an answer again.

    Attributes:
        margin: the prefill graph decides where the largest logit leads the second by less.
        positions: the most positions that it runs again, the newest included.
    """

    margin: float
    positions: int
