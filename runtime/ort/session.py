"""ONNX Runtime sessions: their options, how a graph is opened, and which nodes run where."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from numpy.typing import NDArray

from fastvlm_onnx.errors import InputError, PackageError, ProviderError
from fastvlm_onnx.runtime.ort.compiled_cache import warn_of_folder
from fastvlm_onnx.runtime.ort.compiled_graphs import CompiledGraph, Placement
from fastvlm_onnx.runtime.ort.coreml import wipe_model_cache
from fastvlm_onnx.runtime.ort.hardware import cores, physical_cores
from fastvlm_onnx.runtime.ort.openvino import options_with_threads
from fastvlm_onnx.runtime.ort.plugins import chosen_devices, plugin_devices
from fastvlm_onnx.runtime.ort.provider_selection import ProviderChoice
from fastvlm_onnx.runtime.ort.providers import (
    CPU,
    CUDA,
    OPENVINO,
    PROVIDERS,
    import_onnxruntime,
    in_one_line,
    preload_cuda,
)
from fastvlm_onnx.runtime.ort.saturation import EXACT_PRODUCTS, int8_weights_of
from fastvlm_onnx.runtime.ort.shared_arena import USE_SHARED_ARENA, has_shared_arena

RECORD_PLACEMENT: Final = "session.record_ep_graph_assignment_info"
BATCH_DIMENSION: Final = "batch_size"
log = logging.getLogger("fastvlm_onnx")
log.addHandler(logging.NullHandler())


class GraphRunner(Protocol):
    """A graph that can be run, from arrays to arrays.

    Attributes:
        path: the graph's file.
        choice: the provider that runs the graph, with its options.
        placement: the nodes that each provider took; None if they were not recorded, or if this
            ONNX Runtime does not tell them.
        int8_weights: "int8" if products read the weights as the package holds them; "uint8" if
            ONNX Runtime rewrote the weights, because int8 products saturate on this processor;
            None for a graph without int8 products on the CPU.
        fixes_batch: the graph was opened for one image, and takes one at a time.
        is_stored: the graph was opened from its compiled form on disk, and not from the package.
    """

    path: Path
    choice: ProviderChoice
    placement: Placement | None
    int8_weights: str | None
    fixes_batch: bool
    is_stored: bool

    def run(self, outputs: Sequence[str] | None, feeds: Mapping[str, NDArray[Any]]) -> list[Any]:
        """Run the graph once.

        Args:
            outputs: names of the outputs that are returned; all outputs when None.
            feeds: an array for each input.

        Raises:
            ProviderError: the provider failed, for example for lack of memory. The graph can be
                run again.
        """
        ...


class GraphSession:
    """A graph that stays open on its provider; see `GraphRunner` for its other attributes.

    Attributes:
        observer: called with the seconds of each run; None for no calls.
    """

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
        keeps_memory: bool = True,
    ) -> None:
        """Open the graph.

        Args:
            path: the graph's file.
            choice: the provider that runs the graph, with its options.
            threads: intra-op threads; one for each physical core when None.
            has_int8_products: the graph multiplies uint8 activations by int8 weights, as its
                record in the manifest says.
            record_placement: record the placement on the CPU too.
            fixes_batch: open the graph for a batch of one.
            compiled: the place of the compiled graph on disk; None if it is not kept.
            keeps_memory: take the activations' memory on the CPU from the arena that all graphs
                share, which keeps it; otherwise it is released with the graph.

        Raises:
            InputError: `threads` is below 1.
            PackageError: the CPU provider cannot load the graph.
            ProviderError: another provider cannot load the graph, or takes no node of it.
        """
        if threads is not None and threads < 1:
            raise InputError(f"threads is {threads}; expected 1 or more.")
        self.path, self.choice, self.fixes_batch = path, choice, fixes_batch
        self.placement: Placement | None = None
        self.observer: Callable[[float], object] | None = None
        self._ort = import_onnxruntime()
        self._threads = threads
        self._is_on_cpu = choice.ep == CPU
        self._shares_arena = self._is_on_cpu and keeps_memory and has_shared_arena()
        if choice.ep == CUDA:
            preload_cuda()
        # Other providers have products of their own.
        self.int8_weights = int8_weights_of(has_int8_products and self._is_on_cpu)
        self._records = record_placement or not self._is_on_cpu
        self._session: Any = self._open_stored(compiled) if compiled else None
        self.is_stored = self._session is not None
        if self._session is None:
            self._session = self._open_graph(compiled)
            if self._records:
                self.placement = placement_of(self._session)
        self._returning = self._ort.RunOptions()
        self._returning.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        if not self._is_on_cpu:
            self._check_placement()

    def _open_stored(self, compiled: CompiledGraph) -> Any:
        """Open the compiled graph on disk; None if there is none, or if it cannot be opened."""
        placement, context = compiled.read(), compiled.context
        if placement is None or context is None:
            return None
        try:
            opened = self._open(self._options(), context)
        except Exception:  # compiled for another driver, for example
            compiled.delete()
            return None
        self.placement = placement
        return opened

    def _open_graph(self, compiled: CompiledGraph | None) -> Any:
        """Open the package's graph, and keep it compiled if there is a place for it.

        Raises:
            PackageError: the CPU provider cannot load the graph.
            ProviderError: another provider cannot load the graph.
        """
        unfinished = compiled.begin() if compiled else None
        if compiled and unfinished:
            options = self._options()
            for entry in compiled.context_entries(unfinished):
                options.add_session_config_entry(*entry)
            try:
                opened = self._open(options, self.path)
            except Exception as error:
                compiled.abandon(unfinished)
                opened, reason = self._open_plain(), in_one_line(error)
                warn_of_folder(reason)
                return opened
            compiled.finish(unfinished, placement_of(opened))
            return opened
        return self._open_plain()

    def _open_plain(self) -> Any:
        # ONNX Runtime's exceptions have no base class of their own.
        try:
            return self._open(self._options(), self.path)
        except Exception as error:
            # CoreML's compiled model of another version, or an incomplete one, is compiled again.
            if not wipe_model_cache(self.choice):
                raise self._refused(error) from None
            try:
                return self._open(self._options(), self.path)
            except Exception as again:
                raise self._refused(again) from None

    def _options(self) -> Any:
        options = session_options(self._threads)
        if self.int8_weights == "uint8":
            options.add_session_config_entry(*EXACT_PRODUCTS)
        if self._records:
            options.add_session_config_entry(RECORD_PLACEMENT, "1")
        if self._shares_arena:
            options.add_session_config_entry(*USE_SHARED_ARENA)
        if self.fixes_batch:
            options.add_free_dimension_override_by_name(BATCH_DIMENSION, 1)
        return options

    def _open(self, options: Any, path: Path) -> Any:
        ort, choice = self._ort, self.choice
        chain = [(choice.ep, dict(choice.options)), *((ep, dict(o)) for ep, o in choice.others)]
        if OPENVINO in (ep for ep, _ in chain):
            threads = options.intra_op_num_threads
            chain = [
                (ep, options_with_threads(given, threads) if ep == OPENVINO else given)
                for ep, given in chain
            ]
        # A registered plugin is also in ONNX Runtime's list of available providers, but it starts
        # from its devices only.
        if self._is_on_cpu or not plugin_devices(choice.ep):
            if not self._is_on_cpu:
                chain.append((CPU, {}))
            return ort.InferenceSession(str(path), options, providers=chain, enable_fallback=0)
        for ep, given in chain:
            if plugin_devices(ep):
                options.add_provider_for_devices(*chosen_devices(ep, given))
            else:
                options.add_provider(ep, given)
        return ort.InferenceSession(str(path), options, enable_fallback=0)

    def _refused(self, error: Exception) -> Exception:
        reason = in_one_line(error)
        if self._is_on_cpu:
            return PackageError(
                f"{self.path}: ONNX Runtime {self._ort.__version__} cannot load it ({reason}); "
                "export the package again."
            )
        return ProviderError(
            f"{self.path}: {self.choice.ep} cannot load it ({reason}); take other options with "
            "--provider-option, another variant with --precision, or --provider cpu."
        )

    def _check_placement(self) -> None:
        """Check that the provider took nodes; log a warning if it left nodes to the CPU.

        Raises:
            ProviderError: the provider did not start, or took no node.
        """
        ep = self.choice.ep
        if ep not in self._session.get_providers():
            provider = PROVIDERS.get(self.choice.name)
            raise ProviderError(
                f"{self.path.name}: {ep} could not be started, as a rule because its libraries "
                "are missing or an option is wrong (ONNX Runtime's log says which); "
                f"{f'run `{provider.install}`' if provider else 'install them'}, or take "
                "--provider cpu."
            )
        if self.placement is None:
            return
        taken = {name: sum(operators.values()) for name, operators in self.placement.items()}
        if not taken.get(ep):
            raise ProviderError(
                f"{self.path.name}: {ep} took none of its {sum(taken.values())} nodes; take "
                "another variant with --precision, or another provider for this graph."
            )
        if left := self.placement.get(CPU):
            log.warning(
                "%s: %s took %d of %d nodes; on the CPU: %s",
                self.path.name,
                ep,
                taken[ep],
                sum(taken.values()),
                ", ".join(f"{count} {name}" for name, count in left.most_common()),
            )

    def run(self, outputs: Sequence[str] | None, feeds: Mapping[str, NDArray[Any]]) -> list[Any]:
        """Run the graph once; see `GraphRunner.run`."""
        began = time.perf_counter()
        try:
            found: list[Any] = self._session.run(outputs, feeds)
        except Exception as error:
            raise self._failed(error) from None
        if self.observer is not None:
            self.observer(time.perf_counter() - began)
        return found

    def run_with_iobinding(self, binding: Any, *, returns_memory: bool = False) -> None:
        """Run the graph once on bound tensors.

        Args:
            binding: made by `io_binding`, with all inputs and outputs bound.
            returns_memory: release the activations' memory after the run. Without it, the memory is
                kept for the next run.

        Raises:
            ProviderError: the provider failed, for example for lack of memory. The session stays
                usable.
        """
        options = self._returning if returns_memory and self._is_on_cpu else None
        began = time.perf_counter()
        try:
            self._session.run_with_iobinding(binding, options)
        except Exception as error:
            raise self._failed(error) from None
        if self.observer is not None:
            self.observer(time.perf_counter() - began)

    def _failed(self, error: Exception) -> ProviderError:
        return ProviderError(
            f"{self.path.name}: {self.choice.ep} failed while running it ({in_one_line(error)}); "
            "if memory was short, free some, or take a smaller variant or image size."
        )

    def io_binding(self) -> Any:
        """Return a new binding for `run_with_iobinding`."""
        return self._session.io_binding()

    def get_inputs(self) -> list[Any]:
        """Return names, types and shapes of the inputs, as ONNX Runtime has them."""
        return self._session.get_inputs()

    def get_outputs(self) -> list[Any]:
        """Return names, types and shapes of the outputs, as ONNX Runtime has them."""
        return self._session.get_outputs()


def session_options(threads: int | None) -> Any:
    """Make the SessionOptions that all graphs share.

    Args:
        threads: intra-op threads, of which there is at most one for each logical core; one for
            each physical core when None.
    """
    options = import_onnxruntime().SessionOptions()
    # Threads without a core spin on a core that others need: with 256 threads on 2 cores, an answer
    # of two tokens took a minute. Where memory has no room for their stacks, ONNX Runtime hangs.
    options.intra_op_num_threads = min(threads or physical_cores() or 0, cores())
    options.log_severity_level = (
        4  # errors come as exceptions; a log line would be a second message
    )
    # The memory-pattern allocator costs 20 % more memory for the vision encoder and is no faster.
    options.enable_mem_pattern = False
    # Sessions take turns: spinning workers of an idle session take a core from the busy session.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def placement_of(session: Any) -> Placement | None:
    """Return the nodes that each provider took; None if this ONNX Runtime does not tell them."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    placement: dict[str, Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        operators = placement.setdefault(part.ep_name, Counter())
        operators.update(node.op_type for node in part.get_nodes())
    return placement
