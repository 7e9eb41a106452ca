"""Images that are encoded and prefilled before the question comes."""

from collections.abc import Sequence
from dataclasses import dataclass

from fastvlm_onnx.runtime.answering.components import Components
from fastvlm_onnx.runtime.engine.kv_cache import KVCache
from fastvlm_onnx.runtime.text.prompt import ImagePlace, PromptPart
from fastvlm_onnx.runtime.vision.image_encoder import ImageFeatures


@dataclass(frozen=True, eq=False)
class SeenImage(ImageFeatures):
    """An image whose features are there, and its keys and values as the first image of a prompt.

    Good for the model that saw it, in the place of any image.

    Attributes:
        id: names the image to the scheduler that saw it; None where the model itself saw it.
        expires_at: the id is good until this time.time(); None without an id.
    """

    id: str | None = None
    expires_at: float | None = None


def see_image(
    components: Components,
    features: ImageFeatures,
    id: str | None = None,
    expires_at: float | None = None,
) -> SeenImage:
    """Prefill an image as the first of a prompt, and keep its keys and values.

    Raises:
        ProviderError: the provider failed.
    """
    model, prefixes = components.language_model, components.prefixes
    seen = SeenImage(features.array, features.image_size, id, expires_at)
    prompt = components.template.prompt([ImagePlace(0)])
    parts = prompt[: prompt.index(ImagePlace(0)) + 1]
    key = components.key(parts, [seen])
    cache = model.new_cache(len(key))
    model.start_from_prefix(cache, key, prefixes)
    model.prefill(components.embed(parts, [seen])[:, cache.length :], cache)
    prefixes.add(key, cache.read)
    return seen


def start_from_seen(
    components: Components,
    parts: Sequence[PromptPart],
    images: Sequence[ImageFeatures],
    cache: KVCache,
) -> int:
    """Fill an empty cache with what is known of a prompt, if `see` prepared an image of it.

    Returns:
        The number of positions that were known.
    """
    if not any(isinstance(image, SeenImage) for image in images):
        return 0
    key = components.key(parts, images)
    return components.language_model.start_from_prefix(cache, key, components.prefixes)
