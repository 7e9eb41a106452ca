"""ONNX Runtime sessions: options, opening, and the decoder with its cache bound in place."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvlm_onnx.errors import InputError, PackageError
from fastvlm_onnx.names import ATTENTION_MASK, INPUTS_EMBEDS
from fastvlm_onnx.package import DecoderFormat
from fastvlm_onnx.runtime.kv_cache import KVCache
from fastvlm_onnx.runtime.providers import import_onnxruntime

FloatArray = NDArray[np.float32]


def open_session(path: Path, provider: str, threads: int | None = None) -> Any:
    """Open a graph.

    Args:
        provider: ONNX Runtime's name; the CPU takes what it leaves.
        threads: intra-op threads; one per physical core when None.

    Raises:
        InputError: `threads` is below 1.
        PackageError: the graph cannot be loaded.
    """
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}; expected 1 or more.")
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    # A pattern is one block for all activations, beside what the first run took: a fifth more
    # memory for the vision encoder, and no faster.
    options.enable_mem_pattern = False
    # Sessions take turns: an idle one whose workers spin takes a core from the busy one.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    providers = list(dict.fromkeys((provider, "CPUExecutionProvider")))
    try:
        return ort.InferenceSession(str(path), options, providers=providers)
    # ONNX Runtime's exceptions share no base below Exception.
    except Exception as error:
        first_line = str(error).splitlines()[0]
        raise PackageError(
            f"{path}: ONNX Runtime {ort.__version__} cannot load it ({first_line}); "
            "export the package again."
        ) from None


class DecoderSession:
    """The decoder, one sequence at a time: one graph, or two that fill the same cache."""

    def __init__(self, session: Any, decoder: DecoderFormat, prefill_session: Any = None) -> None:
        """Take the graphs.

        Args:
            session: gives logits.
            prefill_session: gives none, and runs all positions but the last of each call; None
                where `session` runs them too.
        """
        self._sessions = [session] if prefill_session is None else [session, prefill_session]
        self._decoder = decoder
        self._mask = np.ones((1, decoder.context_length), np.int64)

    def new_cache(self, capacity: int) -> KVCache:
        """An empty cache with room for `capacity` positions."""
        return KVCache(self._sessions, self._decoder, capacity)

    def run(self, inputs_embeds: FloatArray, cache: KVCache) -> FloatArray:
        """Append positions to the cache.

        Args:
            inputs_embeds: float32 [1, sequence_length, hidden_size], contiguous.

        Returns:
            Logits of the last position, float32 [vocab_size]; overwritten by the next run.
        """
        if len(self._sessions) > 1 and inputs_embeds.shape[1] > 1:
            self._append(1, inputs_embeds[:, :-1], cache)
            inputs_embeds = inputs_embeds[:, -1:]
        self._append(0, inputs_embeds, cache)
        return cache.logits[0, 0]

    def _append(self, graph: int, inputs_embeds: FloatArray, cache: KVCache) -> None:
        total = cache.length + inputs_embeds.shape[1]
        assert total <= cache.capacity
        binding = cache.bindings[graph]
        binding.bind_cpu_input(INPUTS_EMBEDS, inputs_embeds)
        binding.bind_cpu_input(ATTENTION_MASK, self._mask[:, :total])
        self._sessions[graph].run_with_iobinding(binding)
        cache.length = total
