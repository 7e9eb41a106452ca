"""Image features that were made before, found again by the picture's pixels."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]


class FeatureCache:
    """At most so many bytes of them; the ones longest unused go first. For many threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._features: OrderedDict[bytes, FloatArray] = OrderedDict()
        self._lock = threading.Lock()

    def get(
        self, pixel_values: FloatArray, encode: Callable[[FloatArray], FloatArray]
    ) -> FloatArray:
        """image_features of these pixel_values, made by `encode` unless they are known.

        Returns:
            float32 [1, num_image_tokens, hidden_size], not to be written to.
        """
        if self._max_bytes == 0:
            return encode(pixel_values)
        key = hashlib.blake2b(pixel_values.data, digest_size=16).digest()
        with self._lock:
            if key in self._features:
                self._features.move_to_end(key)
                return self._features[key]
        # Without the lock: two threads may both make them, and neither waits for the other.
        features = encode(pixel_values)
        features.flags.writeable = False
        with self._lock:
            if key not in self._features:
                self._features[key] = features
                self._bytes += features.nbytes
            while self._bytes > self._max_bytes:
                self._bytes -= self._features.popitem(last=False)[1].nbytes
        return features

    def clear(self) -> None:
        with self._lock:
            self._features.clear()
            self._bytes = 0
