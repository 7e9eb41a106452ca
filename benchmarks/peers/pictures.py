"""Random images with the spectrum of photographs."""

import numpy as np
from numpy.typing import NDArray


def draw_picture(image_size: int, seed: int) -> NDArray[np.float32]:
    """Return noise with amplitudes of 1 / frequency, float32 [1, 3, S, S], values 0 to 1."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(image_size)[:, None], np.fft.rfftfreq(image_size)[None, :])
    frequency[0, 0] = np.inf
    noise = rng.standard_normal((3, image_size, image_size))
    picture = np.fft.irfft2(np.fft.rfft2(noise) / frequency, s=(image_size, image_size))
    picture /= picture.std(axis=(1, 2), keepdims=True)
    return np.clip(0.5 + 0.25 * picture, 0, 1).astype(np.float32)[None]
