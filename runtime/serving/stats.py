"""The counters of a scheduler."""

from dataclasses import dataclass

from fastvlm_onnx.runtime.engine.prefix_cache import CacheFigures


@dataclass(frozen=True)
class SchedulerStats:
    """Figures of a scheduler at one moment. Totals count since it began.

    Attributes:
        running: answers that have a row.
        waiting: requests in the queue.
        prompt_tokens: total of prompt positions that were prefilled or found in the cache.
        cached_tokens: the part of them that was found in the cache.
        generated_tokens: total of tokens of answers.
        finished: total of answers that ended, by finish reason; "error" for answers that failed.
        prefixes: the model's cache of keys and values, in positions.
        image_features: the model's cache of image features, in images.
        seen_images: images whose ids are good.
    """

    running: int
    waiting: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    finished: dict[str, int]
    prefixes: CacheFigures
    image_features: CacheFigures
    seen_images: int
