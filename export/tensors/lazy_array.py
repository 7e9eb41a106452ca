"""A checkpoint's tensors, handed out by name, none of them read before it is used.

Nothing here knows of files, graphs or torch.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastvlm_onnx.errors import CheckpointError

FloatArray = NDArray[np.float32]

# What is read of a large matrix at a time, where its rows can be read one by one.
CHUNK_BYTES = 64_000_000


@dataclass(frozen=True)
class LazyArray:
    """A float32 array that is computed each time it is read, and kept by nobody.

    Attributes:
        shape: of the whole array.
        read: computes the whole array.
        read_rows: computes rows start to stop (of the first axis) without the others; None where
            they cannot be had alone.
    """

    shape: tuple[int, ...]
    read: Callable[[], FloatArray]
    read_rows: Callable[[int, int], FloatArray] | None = None

    def then(self, change: Callable[[FloatArray], FloatArray], *shape: int) -> "LazyArray":
        """The same array after `change`, which gives an array of `shape`."""
        return LazyArray(shape, lambda: change(self.read()))

    def each_row(self, change: Callable[[FloatArray, slice], FloatArray]) -> "LazyArray":
        """The same array after `change(rows, which)`, which treats each row by itself."""
        read, read_rows = self.read, self.read_rows
        return LazyArray(
            self.shape,
            lambda: change(read(), slice(None)),
            read_rows and (lambda start, stop: change(read_rows(start, stop), slice(start, stop))),
        )

    def first_rows(self, count: int) -> "LazyArray":
        """The array cut to its first `count` rows."""
        read, read_rows = self.read, self.read_rows
        return LazyArray(
            (count, *self.shape[1:]),
            (lambda: read_rows(0, count)) if read_rows else (lambda: read()[:count]),
            read_rows,
        )

    def chunks(self) -> Iterator[FloatArray]:
        """The array in pieces of whole rows, about CHUNK_BYTES each; in one where it must be."""
        if self.read_rows is None or not self.shape:
            yield self.read()
            return
        step = max(1, CHUNK_BYTES // max(1, 4 * math.prod(self.shape[1:])))
        for start in range(0, self.shape[0], step):
            yield self.read_rows(start, min(start + step, self.shape[0]))

    @property
    def size_bytes(self) -> int:
        return 4 * math.prod(self.shape)


def are_equal(a: LazyArray, b: LazyArray) -> bool:
    """Whether two arrays of one shape hold the same values; stops at the first difference."""
    return all(np.array_equal(x, y) for x, y in zip(a.chunks(), b.chunks(), strict=True))


def stacked(arrays: Sequence[LazyArray]) -> LazyArray:
    """Arrays of equal width one below the other: projections of one input as one product."""
    rows = sum(array.shape[0] for array in arrays)
    return LazyArray(
        (rows, *arrays[0].shape[1:]), lambda: np.concatenate([array.read() for array in arrays])
    )


def transposed(array: LazyArray) -> LazyArray:
    """torch's Linear weight [out, in] as MatMul's [in, out]."""
    return array.then(lambda a: a.T, *reversed(array.shape))


def scaled_rows(array: LazyArray, scale: LazyArray) -> LazyArray:
    """`array` with its first axis multiplied by a layer_scale of shape (C, 1, 1)."""
    ones = (1,) * (len(array.shape) - 1)
    return array.each_row(lambda a, which: a * scale.read()[which].reshape(-1, *ones))


def check_finite(name: str, array: LazyArray) -> LazyArray:
    """The array, which raises CheckpointError when it is read and holds NaN or infinity."""

    def check(values: FloatArray, _: slice) -> FloatArray:
        # The sum is finite unless a value is not, or the sum itself overflows: cheap to ask first.
        with np.errstate(over="ignore", invalid="ignore"):
            suspicious = not np.isfinite(values.sum())
        if suspicious and (bad := int(values.size - np.isfinite(values).sum())):
            raise CheckpointError(
                f"tensor {name} holds {bad:,} values that are NaN or infinite, expected none; "
                "the checkpoint is damaged or its training diverged. Give --allow-nonfinite to "
                "export it all the same."
            )
        return values

    return array.each_row(check)
