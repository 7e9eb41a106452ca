"""The times of an engine's answers, as benchmarks/clients.py reads them."""

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# Yields the tokens of an answer to a picture and a prompt, at most so many.
Answer = Callable[[Path, str, int], Iterator[int]]


def measure(load: Callable[[Path, str], Answer]) -> None:
    """Answer as the command line says, and print the figures as JSON.

    Args:
        load: opens a package's variant.
    """
    package, variant, picture, prompt, *numbers = sys.argv[1:]
    max_new_tokens, warmup, repeats = map(int, numbers)
    began = time.perf_counter()
    answer = load(Path(package), variant)
    loaded = time.perf_counter() - began
    first_token, one_token, token_ids = [], [], []
    for i in range(warmup + repeats):
        token_ids, times = [], [time.perf_counter()]
        for token_id in answer(Path(picture), prompt, max_new_tokens):
            token_ids.append(token_id)
            times.append(time.perf_counter())
        if i >= warmup:
            first_token.append(times[1] - times[0])
            one_token.append((times[-1] - times[1]) / (len(token_ids) - 1))
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures = {"load": loaded, "first_token": first_token, "one_token": one_token}
    print(json.dumps(figures | {"token_ids": token_ids, "peak_rss_bytes": peak}))
