"""The array type that the rooms hand to each other."""

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
