"""The images that a scheduler has seen, by id."""

import secrets
import threading
import time
from collections import OrderedDict

from fastvlm_onnx.errors import NotSeenError
from fastvlm_onnx.runtime.answering.see import SeenImage


class SeenImages:
    """Keeps images for a time, and up to a number; the oldest go first. Thread-safe."""

    def __init__(self, seconds: float, max_images: int) -> None:
        """Begin empty.

        Args:
            seconds: time that an id is good for.
            max_images: images that are kept.
        """
        self._seconds, self._max_images = seconds, max_images
        self._images: OrderedDict[str, SeenImage] = OrderedDict()
        self._lock = threading.Lock()

    def new_id(self) -> tuple[str, float]:
        """An id that cannot be guessed, and the time.time() until which it is good."""
        return f"see:{secrets.token_urlsafe(16)}", time.time() + self._seconds

    def add(self, image: SeenImage) -> None:
        """Keep an image under its id."""
        assert image.id is not None
        with self._lock:
            self._images[image.id] = image
            self._drop_expired()
            while len(self._images) > self._max_images:
                self._images.popitem(last=False)

    def get(self, id: str) -> SeenImage:
        """The image with this id.

        Raises:
            NotSeenError: the id is unknown, or has expired.
        """
        with self._lock:
            self._drop_expired()
            if id in self._images:
                return self._images[id]
        raise NotSeenError(
            f"{id!r} names no image that was seen in the last {self._seconds:g} seconds; see the "
            "image again, or send the image itself."
        )

    def __len__(self) -> int:
        """Number of images whose ids are good."""
        with self._lock:
            self._drop_expired()
            return len(self._images)

    def clear(self) -> None:
        """Forget all images."""
        with self._lock:
            self._images.clear()

    def _drop_expired(self) -> None:
        now = time.time()
        # Ids are good for the same time, so the oldest expire first.
        while self._images:
            oldest = next(iter(self._images.values()))
            if oldest.expires_at is None or oldest.expires_at > now:
                break
            del self._images[oldest.id or ""]
