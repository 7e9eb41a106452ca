"""A cache of image features by the digest of their pixel_values."""

import threading
from collections import OrderedDict
from collections.abc import Callable

from fastvlm_onnx.runtime.arrays import FloatArray


class FeatureCache:
    """Keeps features up to a number of bytes; the least recently used go first. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.size_bytes = 0
        self._features: OrderedDict[str, FloatArray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, digest: str, encode: Callable[[], FloatArray]) -> FloatArray:
        """Return the cached features, or encode and cache them.

        Args:
            digest: of the pixel_values.
            encode: computes the features, float32 [1, num_image_tokens, hidden_size].

        Returns:
            The features; read-only where they are cached.
        """
        if self._max_bytes == 0:
            return encode()
        with self._lock:
            if digest in self._features:
                self._features.move_to_end(digest)
                return self._features[digest]
        # Outside the lock: two threads may encode the same image, and neither waits for the other.
        features = encode()
        features.flags.writeable = False
        with self._lock:
            if digest not in self._features:
                self._features[digest] = features
                self.size_bytes += features.nbytes
            while self.size_bytes > self._max_bytes:
                self.size_bytes -= self._features.popitem(last=False)[1].nbytes
        return features

    def clear(self) -> None:
        """Drop all features."""
        with self._lock:
            self._features.clear()
            self.size_bytes = 0
