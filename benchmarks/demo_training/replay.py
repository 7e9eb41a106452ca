"""Pictures that stay on the device, so that a step may train on more than its new ones."""

import torch
from torch import Tensor


class Replay:
    """The last pictures of the training, with their questions and targets."""

    def __init__(self, capacity: int, seed: int) -> None:
        self._capacity, self._seed = capacity, seed
        self._rows: list[Tensor] = []
        self._seen = 0

    def batch(self, fresh: list[Tensor], size: int) -> list[Tensor]:
        """Keep new rows and fill the batch with rows drawn at random from all that are kept.

        Args:
            fresh: the parts of a batch, their first axis the pictures; `capacity` is a multiple of
                its length.
            size: rows of the batch.
        """
        number, device = len(fresh[0]), fresh[0].device
        if size == number:
            return fresh
        if not self._rows:
            self._rows = [part.new_empty((self._capacity, *part.shape[1:])) for part in fresh]
            self._random = torch.Generator(device).manual_seed(self._seed)
        first = self._seen % self._capacity
        for rows, part in zip(self._rows, fresh, strict=True):
            rows[first : first + number] = part
        self._seen += number
        kept = min(self._seen, self._capacity)
        again = torch.randint(kept, (size - number,), generator=self._random, device=device)
        return [
            torch.cat([part, rows[again]]) for part, rows in zip(fresh, self._rows, strict=True)
        ]
