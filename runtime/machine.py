"""The machine this process runs on, in words and numbers."""

import os
import platform
import sys
from pathlib import Path


def processor() -> str:
    """The processor's name, as Linux gives it, or what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def cores() -> int:
    """Logical cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_rss_bytes() -> int | None:
    """The most memory this process ever held; None where the system does not say."""
    try:
        # Not getrusage where it can be helped: on Linux it counts what the parent held before exec.
        status = Path("/proc/self/status").read_text("utf-8")
    except OSError:
        return _peak_rss_of_getrusage()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _peak_rss_of_getrusage() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
