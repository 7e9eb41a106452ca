"""Twenty thousand requests to one server (benchmarks/soak.py)."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import soak


@pytest.mark.slow
def test_twenty_thousand_requests_are_answered_in_level_memory(
    package: Path, tmp_path: Path
) -> None:
    # The tests with a browser leave an event loop in the main thread, beside which none can run.
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(soak.run, package, 20_000, tmp_path / "log").result()
    assert found.kinds.total() == 20_000
    assert found.wrong == []
    assert (found.tracebacks, found.left, found.exit_code) == (0, 0, 0)
    assert found.growth <= 0.03
