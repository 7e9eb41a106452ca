"""Signals of a command."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from fastvlm_onnx import signals

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows sends no signals to itself")


def test_a_later_signal_waits_for_an_import_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "late_module.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(0.1)\n"
        "from tests_of_signals import seen\nat_end = len(seen)\n"
    )
    seen: list[int] = []
    monkeypatch.setitem(sys.modules, "tests_of_signals", type("Module", (), {"seen": seen}))
    monkeypatch.syspath_prepend(tmp_path)
    handler = signals._after_imports(lambda number, _frame: seen.append(number))
    before = signal.signal(signal.SIGTERM, handler)
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        assert seen == [signal.SIGTERM]
        # As after a long chat: the time that the first signal had is over.
        monkeypatch.setattr(signals, "LONGEST_IMPORT", 2.0)
        time.sleep(2.1)
        import late_module

        assert late_module.at_end == 1
        deadline = time.monotonic() + 30
        while len(seen) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(seen) == 2
    finally:
        signal.signal(signal.SIGTERM, before)
        sys.modules.pop("late_module", None)
