"""The cache of keys and values: what is found, what is kept, what goes first."""

import random
from collections.abc import Sequence

import numpy as np
import pytest

from fastvlm_onnx.runtime.engine.prefix_cache import KeysValues, PrefixCache

POSITION_BYTES = 2 * 3 * 4 * 4


def values_of(key: Sequence[int], begin: int = 0, end: int | None = None) -> KeysValues:
    """Keys and values that tell their positions: float32 [2, 3, positions, 4]."""
    row = np.array(key[begin:end], np.float32)[None, None, :, None]
    return np.ascontiguousarray(np.broadcast_to(row, (2, 3, row.shape[2], 4)))


def add(cache: PrefixCache, key: Sequence[int]) -> list[tuple[int, int]]:
    """Add a prompt; return the stretches of positions that were read."""
    read: list[tuple[int, int]] = []

    def record(begin: int, end: int) -> KeysValues:
        read.append((begin, end))
        return values_of(key, begin, end)

    cache.add(key, record)
    return read


def found(cache: PrefixCache, key: Sequence[int]) -> list[int]:
    """The beginning of a key that is found, read from the values themselves."""
    return [int(value) for part in cache.find(key) for value in part[0, 0, :, 0]]


@pytest.fixture
def cache() -> PrefixCache:
    return PrefixCache(100 * POSITION_BYTES)


def test_the_longest_known_beginning_is_found(cache: PrefixCache) -> None:
    add(cache, [1, 2, 3, 4])
    assert found(cache, [1, 2, 3, 4]) == [1, 2, 3, 4]
    assert found(cache, [1, 2, 9, 4]) == [1, 2]
    assert found(cache, [1, 2, 3, 4, 5]) == [1, 2, 3, 4]
    assert found(cache, [1]) == [1]
    assert found(cache, [2, 3]) == []
    assert found(cache, []) == []


def test_a_common_beginning_is_held_once(cache: PrefixCache) -> None:
    assert add(cache, [1, 2, 3, 4]) == [(0, 4)]
    assert add(cache, [1, 2, 5]) == [(2, 3)]
    assert add(cache, [1, 2, 3, 4, 6]) == [(4, 5)]
    assert add(cache, [1, 2, 3]) == []
    assert cache.figures.size_bytes == 6 * POSITION_BYTES
    for key in ([1, 2, 3, 4, 6], [1, 2, 5]):
        assert found(cache, key) == key


def test_the_least_recently_used_end_goes_first(cache: PrefixCache) -> None:
    add(cache, [1, *range(100, 140)])
    add(cache, [2, *range(200, 240)])
    assert found(cache, [1, 100]) == [1, 100]
    add(cache, [3, *range(300, 330)])
    assert found(cache, [2, 200]) == []
    assert found(cache, [1, 100]) == [1, 100]
    assert found(cache, [3, 300]) == [3, 300]


def test_a_beginning_outlives_its_continuations(cache: PrefixCache) -> None:
    beginning = [*range(30)]
    for branch in range(5):
        add(cache, [*beginning, *range(1000 * branch + 1000, 1000 * branch + 1030)])
    assert found(cache, [*beginning, 1000]) == beginning
    assert found(cache, [*beginning, 5000]) == [*beginning, 5000]
    assert cache.figures.size_bytes <= cache.figures.max_bytes


def test_a_prompt_larger_than_the_cache_is_not_kept(cache: PrefixCache) -> None:
    add(cache, [1, 2])
    add(cache, range(10, 200))
    assert found(cache, [1, 2]) == [1, 2]
    assert found(cache, range(10, 200)) == []


def test_a_cache_of_no_bytes_keeps_nothing() -> None:
    cache = PrefixCache(0)
    assert add(cache, [1, 2]) == []
    assert found(cache, [1, 2]) == []


def test_figures_count_positions(cache: PrefixCache) -> None:
    add(cache, [1, 2, 3])
    found(cache, [1, 2, 9])
    found(cache, [7])
    figures = cache.figures
    assert (figures.queries, figures.hits, figures.size_bytes) == (4, 2, 3 * POSITION_BYTES)
    cache.clear()
    assert cache.figures.size_bytes == 0
    assert found(cache, [1]) == []


def test_random_prompts_are_found_as_they_were_added_and_the_limit_holds(
    cache: PrefixCache,
) -> None:
    rng = random.Random(0)
    for _ in range(3000):
        key = [rng.randrange(3) for _ in range(rng.randrange(1, 12))]
        before = found(cache, key)
        assert before == key[: len(before)]
        add(cache, key)
        assert found(cache, key) == key
        assert cache.figures.size_bytes <= cache.figures.max_bytes
