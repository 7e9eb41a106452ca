"""A cache of image features by the digest of their pixel_values."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final

from fastvlm_onnx.runtime.arrays import FloatArray

MAX_NAMES: Final = 4096


class FeatureCache:
    """Keeps features up to a number of bytes; the least recently used go first. Thread-safe.

    Attributes:
        queries: images that were asked for.
        hits: the part of them that was found.
        size_bytes: bytes that the cache holds.
        max_bytes: bytes that the cache may hold.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.queries = self.hits = self.size_bytes = 0
        self._features: OrderedDict[str, FloatArray] = OrderedDict()
        self._digests: OrderedDict[Hashable, str] = OrderedDict()
        self._lock = threading.Lock()

    def name(self, name: Hashable, digest: str) -> None:
        """Give the features of a digest another name, under which `find` finds them."""
        with self._lock:
            self._digests[name] = digest
            while len(self._digests) > MAX_NAMES:
                self._digests.popitem(last=False)

    def find(self, name: Hashable) -> FloatArray | None:
        """The cached features with this name; None where there are none."""
        with self._lock:
            digest = self._digests.get(name)
            if digest is None or digest not in self._features:
                return None
            self.queries += 1
            self.hits += 1
            self._features.move_to_end(digest)
            return self._features[digest]

    def get(self, digest: str, encode: Callable[[], FloatArray]) -> FloatArray:
        """Return the cached features, or encode and cache them.

        Args:
            digest: of the pixel_values.
            encode: computes the features, float32 [1, num_image_tokens, hidden_size].

        Returns:
            The features; read-only where they are cached.
        """
        with self._lock:
            self.queries += 1
            if digest in self._features:
                self.hits += 1
                self._features.move_to_end(digest)
                return self._features[digest]
        # Outside the lock: two threads may encode the same image, and neither waits for the other.
        features = encode()
        if features.nbytes > self.max_bytes:
            return features
        features.flags.writeable = False
        with self._lock:
            if digest not in self._features:
                self._features[digest] = features
                self.size_bytes += features.nbytes
            while self.size_bytes > self.max_bytes:
                self.size_bytes -= self._features.popitem(last=False)[1].nbytes
        return features

    def clear(self) -> None:
        """Drop all features."""
        with self._lock:
            self._features.clear()
            self._digests.clear()
            self.size_bytes = 0
