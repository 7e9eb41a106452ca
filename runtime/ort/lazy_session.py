"""Graphs that are open only while they run, or from their first run on."""

import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fastvlm_onnx.runtime.ort.compiled_graphs import CompiledGraph, Placement
from fastvlm_onnx.runtime.ort.provider_selection import ProviderChoice
from fastvlm_onnx.runtime.ort.providers import CPU
from fastvlm_onnx.runtime.ort.saturation import int8_weights_of
from fastvlm_onnx.runtime.ort.session import GraphSession


class LazySession:
    """A graph that is opened for each run and closed after it; see `GraphRunner`."""

    def __init__(
        self,
        path: Path,
        choice: ProviderChoice,
        threads: int | None = None,
        *,
        has_int8_products: bool = False,
        record_placement: bool = False,
        fixes_batch: bool = False,
        compiled: CompiledGraph | None = None,
    ) -> None:
        """Take the graph; open it once if a provider other than the CPU's is to be checked.

        Args:
            path: the graph's file.
            choice: the provider that runs the graph, with its options.
            threads: intra-op threads; one for each physical core when None.
            has_int8_products: the graph multiplies uint8 activations by int8 weights, as its
                record in the manifest says.
            record_placement: record the placement on the CPU too.
            fixes_batch: open the graph for a batch of one.
            compiled: the place of the compiled graph on disk; None if it is not kept.

        Raises:
            ProviderError: the provider cannot load the graph, or takes no node of it.
        """
        self.path, self.choice, self.fixes_batch = path, choice, fixes_batch
        self.placement: Placement | None = None
        self.is_stored = False
        self.int8_weights = int8_weights_of(has_int8_products and choice.ep == CPU)
        self._open_session = partial(
            GraphSession,
            path,
            choice,
            threads,
            has_int8_products=has_int8_products,
            fixes_batch=fixes_batch,
            compiled=compiled,
            keeps_memory=False,
        )
        if choice.ep != CPU or record_placement:
            self.placement = self._open_session(record_placement=record_placement).placement

    def run(self, outputs: Sequence[str] | None, feeds: Mapping[str, NDArray[Any]]) -> list[Any]:
        """Open the graph, run it once and close it; see `GraphRunner.run`."""
        return self._open_session().run(outputs, feeds)


class DeferredSession(LazySession):
    """A graph that is opened for its first run, and then stays open; see `GraphRunner`."""

    def __init__(
        self, path: Path, choice: ProviderChoice, threads: int | None = None, **options: Any
    ) -> None:
        """Take the graph; see `LazySession`."""
        super().__init__(path, choice, threads, **options)
        self._lock = threading.Lock()
        self._session: GraphSession | None = None

    def run(self, outputs: Sequence[str] | None, feeds: Mapping[str, NDArray[Any]]) -> list[Any]:
        """Run the graph once; see `GraphRunner.run`."""
        with self._lock:
            session = self._session = self._session or self._open_session()
        return session.run(outputs, feeds)
