"""Pictures that stay on the device, so that a step may train on more than its new ones."""

import torch
from torch import Tensor


class Replay:
    """The last pictures of the training, with their questions and targets."""

    def __init__(self, capacity: int, seed: int, *, is_relit: bool = False) -> None:
        """Keep at most `capacity` pictures.

        Args:
            is_relit: the first part is pixels, which look a little different each time.
        """
        self._capacity, self._seed, self._is_relit = capacity, seed, is_relit
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
        old = [rows[again] for rows in self._rows]
        if self._is_relit:
            old[0] = self._relit(old[0])
        return [torch.cat(parts) for parts in zip(fresh, old, strict=True)]

    def _relit(self, pixels: Tensor) -> Tensor:
        """Known pictures a little brighter or darker, and some with noise: harder to know again.

        Args:
            pixels: uint8 [pictures, 3, height, width]. The black border stays black.
        """
        shape = (len(pixels), 1, 1, 1)
        gain = 0.94 + 0.12 * torch.rand(shape, generator=self._random, device=pixels.device)
        sigma = 10 * torch.rand(shape, generator=self._random, device=pixels.device) - 4
        noise = torch.randn(pixels.shape, generator=self._random, device=pixels.device)
        lit = (pixels * gain + noise * sigma.relu()).clamp(0, 255).byte()
        return torch.where(pixels.amax(1, keepdim=True) > 0, lit, pixels)
