"""A progress bar on stderr."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastvlm_onnx.progress import Progress, no_progress

BYTES = "B"


@contextmanager
def progress_bar(label: str, unit: str) -> Iterator[Progress]:
    """Show a bar with stage, share, rate and remaining time, if stderr is a terminal.

    Args:
        label: name of the job, in front of the stage's name.
        unit: name of the things that are counted; BYTES shows kB, MB and GB.

    Yields:
        A function that shows the state of the job. A new total, or fewer things done than before,
        begins a new bar.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        yield no_progress
        return
    from tqdm import tqdm

    bar: Any = None

    def update(stage: str, done: int, total: int) -> None:
        nonlocal bar
        if bar is not None and (bar.total != total or done < bar.n):
            bar.close()
            bar = None
        description = f"{label} {stage}"
        if bar is None:
            in_bytes = unit == BYTES
            bar = tqdm(None, description, total, unit=unit, unit_scale=in_bytes, dynamic_ncols=True)
        bar.set_description_str(description, refresh=False)
        bar.update(done - bar.n)

    try:
        yield update
    finally:
        if bar is not None:
            bar.close()
