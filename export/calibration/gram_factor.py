"""Factorise X.T X of a product's inputs, and solve with the factor. Numpy only.

The matrices of a 7B model take more than a gigabyte, so everything is done in place, tile by tile.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from fastvlm_onnx.export.tensors.lazy_array import FloatArray

# The least diagonal of H, as a share of the mean.
LEAST_DIAGONAL: Final = 1e-6
# Rows and columns of a tile.
TILE: Final = 256


def mirror(gram: FloatArray) -> None:
    """Copy the upper triangle of a matrix into its lower triangle."""
    for start in range(0, len(gram), TILE):
        rows = slice(start, start + TILE)
        tile = np.triu(gram[rows, rows])
        gram[rows, rows] = tile + np.triu(tile, 1).T
        gram[start + TILE :, rows] = gram[rows, start + TILE :].T


def permute(gram: FloatArray, order: NDArray[np.int64]) -> None:
    """Put the rows and columns of a matrix in another order, in place."""
    # Each cycle of the permutation moves one row at a time.
    waiting = set(range(len(order)))
    while waiting:
        first = row = next(iter(waiting))
        kept = gram[first].copy()
        while order[row] != first:
            gram[row] = gram[order[row]]
            waiting.discard(row)
            row = int(order[row])
        gram[row] = kept
        waiting.discard(row)
    for start in range(0, len(gram), TILE):
        gram[start : start + TILE] = gram[start : start + TILE, order]


def damped_factor(gram: FloatArray, damping: float) -> FloatArray:
    """Return the upper triangular R with R @ R.T = H + damping * diagonal of H.

    Args:
        gram: H, float32 [n, n], symmetric. It is overwritten by R.
        damping: the first share of the diagonal that is tried. It is raised tenfold until the
            matrix is positive definite in float32.
    """
    diagonal = np.einsum("ii->i", gram)
    # A channel without input gets a diagonal, too.
    kept = np.maximum(diagonal, np.float32(LEAST_DIAGONAL * float(diagonal.mean()) or 1.0))
    while True:
        diagonal[:] = kept * np.float32(1 + damping)
        try:
            _factorize(gram)
            break
        except np.linalg.LinAlgError:
            damping = 10 * damping or 1e-4
            # The lower triangle still holds H.
            mirror(gram.T)
    for start in range(0, len(gram), TILE):
        rows = slice(start, start + TILE)
        gram[rows, rows] = np.triu(gram[rows, rows])
        gram[start + TILE :, rows] = 0
    return gram


def _factorize(gram: FloatArray) -> None:
    """Replace the upper triangle of H by R with R @ R.T = H, tile by tile from the end.

    The lower triangle, without the diagonal, is neither read nor changed.

    Raises:
        LinAlgError: H is not positive definite.
    """
    for start in reversed(range(0, len(gram), TILE)):
        rows = slice(start, min(start + TILE, len(gram)))
        tile = np.triu(gram[rows, rows]).astype(np.float64)
        tile = tile + np.triu(tile, 1).T
        # numpy's factor is lower triangular; reversing both axes makes it upper triangular.
        corner = np.linalg.cholesky(tile[::-1, ::-1])[::-1, ::-1]
        upper = np.triu_indices(len(corner))
        gram[rows, rows][upper] = corner[upper]
        panel = gram[:start, rows] @ np.linalg.inv(corner).T.astype(np.float32)
        gram[:start, rows] = panel
        for above in range(0, start, TILE):
            strip = slice(above, above + TILE)
            update = panel[strip] @ panel[above:start].T
            update[:, :TILE] = np.triu(update[:, :TILE])
            gram[strip, above:start] -= update


def solve(factor: FloatArray, rows: FloatArray) -> None:
    """Multiply rows by inverse(factor @ factor.T) from the right, in place.

    Args:
        factor: upper triangular, float32 [n, n].
        rows: float32 [m, n].
    """
    tiles = [slice(i, min(i + TILE, len(factor))) for i in range(0, len(factor), TILE)]
    inverses = [
        np.linalg.inv(factor[tile, tile].astype(np.float64)).astype(np.float32) for tile in tiles
    ]
    # Solve y @ factor.T = rows for y, from the last column on.
    for tile, inverse in zip(reversed(tiles), reversed(inverses), strict=True):
        later = slice(tile.stop, None)
        rows[:, tile] -= rows[:, later] @ factor[tile, later].T
        rows[:, tile] = rows[:, tile] @ inverse.T
    for tile, inverse in zip(tiles, inverses, strict=True):
        before = slice(tile.start)
        rows[:, tile] -= rows[:, before] @ factor[before, tile]
        rows[:, tile] = rows[:, tile] @ inverse
