"""The machine that this process runs on: its processor, cores and memory."""

import os
import platform
import sys
from pathlib import Path


def processor() -> str:
    """Return the processor's name: from Linux if it tells it, else from Python."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


# Features that int8, float16 and bfloat16 products depend on, under Linux's names.
FEATURES = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "i8mm",
    "sme",
)


def processor_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Return the processor's features that matter to the graphs; empty without /proc/cpuinfo."""
    try:
        lines = cpuinfo.read_text("utf-8").splitlines()
    except OSError:
        return []
    # x86 lists `flags`, ARM lists `Features`.
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    found = set(flags.partition(":")[2].split())
    return [feature for feature in FEATURES if feature in found]


def cores() -> int:
    """Return the number of logical cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_rss_bytes() -> int | None:
    """Return the largest resident set of this process; None if the system does not tell it."""
    try:
        # On Linux, getrusage also counts the memory that the parent process held before exec.
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


def available_memory_bytes(root: Path = Path("/")) -> int | None:
    """Return the memory that this process may still take; None if Linux does not tell it.

    Args:
        root: the folder under which Linux shows /proc and /sys.
    """
    found = []
    try:
        text = (root / "proc/meminfo").read_text("utf-8")
        found += [int(line.split()[1]) * 1024 for line in text.splitlines() if "MemAvail" in line]
        group = root / "sys/fs/cgroup"  # a container's limit; the outermost group has no such files
        limit, used = ((group / f"memory.{name}").read_text("utf-8") for name in ("max", "current"))
        found.append(int(limit) - int(used))
    except (OSError, ValueError):  # another system, no limit, or the limit "max"
        pass
    return max(0, min(found)) if found else None


def physical_memory_bytes() -> int | None:
    """Return the memory of this machine; None if the system does not tell it, as Windows."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def physical_cores() -> int | None:
    """Return the number of physical cores that this process may use.

    The process's affinity and its cgroup's limit both restrict the number.

    Returns:
        None if the system does not tell which logical cores share a physical core.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    siblings = set()
    for core in os.sched_getaffinity(0):
        path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
        try:
            siblings.add(path.read_text("utf-8").strip())
        except OSError:
            return None
    return min(len(siblings), cgroup_cores() or len(siblings))


def cgroup_cores(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the cgroup's limit of processor time as a number of cores.

    Returns:
        At least 1; None without a limit.
    """
    try:
        try:
            quota, period = (root / "cpu.max").read_text("utf-8").split()
        except OSError:
            quota, period = (
                (root / "cpu" / f"cpu.cfs_{name}_us").read_text("utf-8").strip()
                for name in ("quota", "period")
            )
        limit = int(quota) / int(period)
    except (OSError, ValueError):  # no cgroups, or the limit "max"
        return None
    return max(1, int(limit)) if limit > 0 else None


def memory_bytes() -> tuple[int | None, int | None]:
    """Return the machine's memory and its free memory; None if the system does not tell them."""
    try:
        text = Path("/proc/meminfo").read_text("utf-8")
    except OSError:
        return None, None
    sizes = {name: int(rest.split()[0]) * 1024 for name, _, rest in _fields(text)}
    return sizes.get("MemTotal"), sizes.get("MemAvailable")


def _fields(text: str) -> list[tuple[str, str, str]]:
    return [line.partition(":") for line in text.splitlines()]
