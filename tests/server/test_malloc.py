"""The server's threads allocate from one arena of glibc's malloc."""

import platform
import subprocess
import sys

import pytest

# malloc(100) in a thread, and the addresses of the main arena.
PROBE = """
import ctypes, threading
from fastvlm_onnx.server.malloc import share_one_arena
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
if {shares}:
    share_one_arena()
found = []
thread = threading.Thread(target=lambda: found.append(libc.malloc(100)))
thread.start(), thread.join()
(line,) = [line for line in open("/proc/self/maps") if line.rstrip().endswith("[heap]")]
begin, end = (int(address, 16) for address in line.split()[0].split("-"))
print(begin <= found[0] < end)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="arenas are glibc's")
@pytest.mark.parametrize("shares", [True, False])
def test_a_thread_of_the_server_allocates_from_the_main_arena(shares: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(shares=shares)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(shares)
