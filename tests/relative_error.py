"""How far values are from the expected values."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def relative_error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """The root mean square of the difference, as a share of that of `expected`."""
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
