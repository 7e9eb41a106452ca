"""Prometheus metrics, with vLLM's names under this package's prefix where they mean the same."""

from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from fastvlm_onnx.runtime.answering.results import Generation
from fastvlm_onnx.runtime.serving.stats import SchedulerStats

PREFIX: Final = "fastvlm_onnx:"
CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
# Paths that are counted under their own name; a scanner's guesses are not.
_PATHS: Final = frozenset(
    {"/v1/chat/completions", "/v1/see", "/v1/models", "/health", "/metrics", "/docs", "/"}
)


class Metrics:
    """The counters of the HTTP side; those of the scheduler are read when they are asked for."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._first_token = self._histogram("time_to_first_token", "From the submission on.")
        self._end_to_end = self._histogram("e2e_request_latency", "From the submission on.")
        self._per_token = self._histogram("time_per_output_token", "After the first token.")
        self._finished = self._counter(
            "request_success", "Answers that ended.", ("finished_reason",)
        )
        self._responses = self._counter("http_responses", "By path and status.", ("path", "status"))

    def follow(self, stats: Callable[[], SchedulerStats]) -> None:
        """Show the scheduler's counters too."""
        self._registry.register(_SchedulerCollector(stats))

    def count(self, generation: Generation) -> None:
        """Count an answer that has ended."""
        times = generation.timings
        self._finished.labels(generation.finish_reason).inc()
        self._first_token.observe(times.first_token)
        self._end_to_end.observe(times.first_token + times.decode)
        if times.tokens_per_second > 0:
            self._per_token.observe(1 / times.tokens_per_second)

    def count_response(self, path: str, status: int) -> None:
        """Count a response."""
        self._responses.labels(path if path in _PATHS else "other", str(status)).inc()

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self._registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"{PREFIX}{name}_seconds", text, buckets=_SECONDS, registry=self._registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(PREFIX + name, text, labels, registry=self._registry)


class _SchedulerCollector(Collector):
    """The scheduler's counters at the moment of the scrape."""

    def __init__(self, stats: Callable[[], SchedulerStats]) -> None:
        self._stats = stats

    def describe(self) -> Iterator[Metric]:
        """Without this, registering would read the counters once."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        for name, text, value in (
            ("num_requests_running", "Answers that have a row.", stats.running),
            ("num_requests_waiting", "Requests in the queue.", stats.waiting),
            ("prefix_cache_bytes", "Keys and values that are kept.", stats.prefixes.size_bytes),
            ("prefix_cache_max_bytes", "The limit.", stats.prefixes.max_bytes),
            ("image_cache_bytes", "Image features that are kept.", stats.image_features.size_bytes),
            ("image_cache_max_bytes", "The limit.", stats.image_features.max_bytes),
            ("seen_images", "Images that a message can name.", stats.seen_images),
        ):
            yield GaugeMetricFamily(PREFIX + name, text, value)
        for name, text, value in (
            ("prompt_tokens", "Positions of prompts.", stats.prompt_tokens),
            ("generation_tokens", "Tokens of answers.", stats.generated_tokens),
            ("prefix_cache_queries", "Positions that were looked for.", stats.prefixes.queries),
            ("prefix_cache_hits", "Positions that were found.", stats.prefixes.hits),
            ("image_cache_queries", "Images that were looked for.", stats.image_features.queries),
            ("image_cache_hits", "Images that were found.", stats.image_features.hits),
        ):
            yield CounterMetricFamily(PREFIX + name, text, value)
