"""One memory arena for the activations of all graphs on the CPU.

Graphs run in turn. With an arena of its own, each graph would keep the memory of its largest run:
160 MB for the vision encoder at 1024 pixels, and 35 MB for a prompt of the 0.5B. The arena lives as
long as the process.
"""

from functools import cache
from typing import Any, Final

from fastvlm_onnx.runtime.ort.providers import import_onnxruntime

USE_SHARED_ARENA: Final = ("session.use_env_allocators", "1")
DOUBLING: Final = 0  # each extension is twice as large as the one before
# Reserved at once, and resident only as far as it is used. In the small extensions that ONNX
# Runtime would begin with, large tensors have no room: an answer at 1024 pixels took 20 MB more.
FIRST_BYTES: Final = 64 << 20
# A free block is split if this much of it would be left over. ONNX Runtime's default is 128 MB,
# with which a tensor may take a block of almost twice its size.
SPLIT_BYTES: Final = 1 << 20


@cache
def has_shared_arena() -> bool:
    """Make the arena; the first call in a process does it.

    Returns:
        False if there is none, as where another part of the process registered one with ONNX
        Runtime. Each graph then has an arena of its own.
    """
    ort: Any = import_onnxruntime()
    settings = {
        "max_mem": 0,
        "arena_extend_strategy": DOUBLING,
        "initial_chunk_size_bytes": FIRST_BYTES,
        "max_dead_bytes_per_chunk": SPLIT_BYTES,
    }
    try:
        ort.create_and_register_allocator(
            ort.OrtMemoryInfo(
                "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
            ),
            ort.OrtArenaCfg(settings),
        )
    except Exception:  # ONNX Runtime's exceptions have no base class of their own
        return False
    return True
