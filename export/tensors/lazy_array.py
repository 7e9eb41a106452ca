"""Arrays that are read when they are used, and the changes that are made to them on the way.

Files, graphs and torch are not known here.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastvlm_onnx.errors import CheckpointError

FloatArray = NDArray[np.float32]

# The size of the pieces in which a large matrix is read, if its rows can be read separately.
CHUNK_BYTES = 64_000_000


@dataclass(frozen=True)
class LazyArray:
    """An array that is computed each time it is read, and never stored here.

    Attributes:
        shape: the shape of the whole array.
        read: computes the whole array.
        read_rows: computes rows start to stop (of the first axis) only; None if rows cannot be
            computed separately.
    """

    shape: tuple[int, ...]
    read: Callable[[], FloatArray]
    read_rows: Callable[[int, int], FloatArray] | None = None

    def then(self, change: Callable[[FloatArray], FloatArray], *shape: int) -> "LazyArray":
        """Return the array after `change`, whose result has the shape `shape`."""
        return LazyArray(shape, lambda: change(self.read()))

    def each_row(self, change: Callable[[FloatArray, slice], FloatArray]) -> "LazyArray":
        """Return the array after `change(rows, which)`, which must change every row separately."""
        read, read_rows = self.read, self.read_rows
        return LazyArray(
            self.shape,
            lambda: change(read(), slice(None)),
            read_rows and (lambda start, stop: change(read_rows(start, stop), slice(start, stop))),
        )

    def first_rows(self, count: int) -> "LazyArray":
        """Return the first `count` rows of the array."""
        return self.rows(0, count)

    def rows(self, start: int, stop: int) -> "LazyArray":
        """Return the rows from start to stop."""
        read, read_rows = self.read, self.read_rows
        return LazyArray(
            (stop - start, *self.shape[1:]),
            (lambda: read_rows(start, stop)) if read_rows else (lambda: read()[start:stop]),
            read_rows and (lambda i, j: read_rows(start + i, start + j)),
        )

    def chunks(self) -> Iterator[FloatArray]:
        """Yield the array in pieces of rows, of about CHUNK_BYTES each.

        Without `read_rows` the whole array is one piece.
        """
        if self.read_rows is None or not self.shape:
            yield self.read()
            return
        step = max(1, CHUNK_BYTES // max(1, 4 * math.prod(self.shape[1:])))
        for start in range(0, self.shape[0], step):
            yield self.read_rows(start, min(start + step, self.shape[0]))

    @property
    def size_bytes(self) -> int:
        """The size of the array in float32."""
        return 4 * math.prod(self.shape)


def are_equal(a: LazyArray, b: LazyArray) -> bool:
    """Return whether two arrays of the same shape are equal; stop at the first difference."""
    return all(np.array_equal(x, y) for x, y in zip(a.chunks(), b.chunks(), strict=True))


def stacked(arrays: Sequence[LazyArray]) -> LazyArray:
    """Concatenate arrays along their first axis: weights that read one input become one product."""
    rows = sum(array.shape[0] for array in arrays)
    return LazyArray(
        (rows, *arrays[0].shape[1:]), lambda: np.concatenate([array.read() for array in arrays])
    )


def transposed(array: LazyArray) -> LazyArray:
    """Transpose torch's Linear weight [out, in] to MatMul's [in, out]."""
    return array.then(lambda a: a.T, *reversed(array.shape))


def scaled_rows(array: LazyArray, scale: LazyArray) -> LazyArray:
    """Multiply the first axis of `array` by a layer_scale of shape [C, 1, 1]."""
    ones = (1,) * (len(array.shape) - 1)
    return array.each_row(lambda a, which: a * scale.read()[which].reshape(-1, *ones))


def check_finite(name: str, array: LazyArray) -> LazyArray:
    """Return the array; reading it raises CheckpointError if it holds NaN or infinity."""

    def check(values: FloatArray, _: slice) -> FloatArray:
        # Fast path: a finite sum proves that all values are finite.
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
