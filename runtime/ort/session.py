"""ONNX Runtime sessions: options, opening, proof of placement; the decoder with its cache."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from fastvlm_onnx.errors import InputError, PackageError, ProviderError
from fastvlm_onnx.runtime.ort.coreml import wipe_model_cache
from fastvlm_onnx.runtime.ort.hardware import physical_cores
from fastvlm_onnx.runtime.ort.provider_selection import ProviderChoice
from fastvlm_onnx.runtime.ort.providers import (
    CPU,
    CUDA,
    PROVIDERS,
    import_onnxruntime,
    in_one_line,
    preload_cuda,
)
from fastvlm_onnx.runtime.ort.saturation import EXACT_PRODUCTS, int8_weights_of

Placement = Mapping[str, Counter[str]]
"""Nodes by provider (ONNX Runtime's name), then by operator."""

RECORD_PLACEMENT: Final = "session.record_ep_graph_assignment_info"
log = logging.getLogger("fastvlm_onnx")
log.addHandler(logging.NullHandler())


class GraphSession:
    """One graph, open on the provider that was chosen for it.

    Attributes:
        path: the graph's file.
        choice: what it runs on.
        placement: which provider took which nodes; None where ONNX Runtime does not say, or nobody
            wanted to know.
        int8_weights: "int8" where products read the weights as the package holds them; "uint8"
            where ONNX Runtime rewrote them, because int8 products saturate on this processor; None
            for a graph without such products.
        observer: is called with the seconds of each bound run, where it is set.
    """

    def __init__(
        self,
        path: Path,
        choice: ProviderChoice,
        threads: int | None = None,
        *,
        has_int8_products: bool = False,
        records_placement: bool = False,
    ) -> None:
        """Open it.

        Args:
            threads: intra-op threads; one per physical core when None.
            has_int8_products: the graph multiplies uint8 activations by int8 weights, as its
                record in the manifest says.
            records_placement: also where the CPU is all there is.

        Raises:
            InputError: `threads` is below 1.
            PackageError: the graph cannot be loaded on the CPU.
            ProviderError: it cannot be on another provider, or that takes no node of it.
        """
        if threads is not None and threads < 1:
            raise InputError(f"threads is {threads}; expected 1 or more.")
        self.path, self.choice = path, choice
        self.observer: Callable[[float], object] | None = None
        self._ort = import_onnxruntime()
        self._is_on_cpu = choice.ep == CPU
        if choice.ep == CUDA:
            preload_cuda()
        options = session_options(threads)
        self.int8_weights = int8_weights_of(has_int8_products)
        if self.int8_weights == "uint8":
            options.add_session_config_entry(*EXACT_PRODUCTS)
        records = records_placement or not self._is_on_cpu
        if records:
            options.add_session_config_entry(RECORD_PLACEMENT, "1")
        # ONNX Runtime's exceptions share no base below Exception.
        try:
            self._session = self._open(options)
        except Exception as error:
            # What was compiled by another version, or cut off, is no reason to give up.
            if not wipe_model_cache(choice):
                raise self._refused(error) from None
            try:
                self._session = self._open(options)
            except Exception as again:
                raise self._refused(again) from None
        self._returning = self._ort.RunOptions()
        self._returning.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self.placement = placement_of(self._session) if records else None
        if not self._is_on_cpu:
            self._check_placement()

    def _open(self, options: Any) -> Any:
        ort, choice = self._ort, self.choice
        chain = [(choice.ep, dict(choice.options)), *((ep, dict(o)) for ep, o in choice.others)]
        if choice.ep in ort.get_available_providers():
            if not self._is_on_cpu:
                chain.append((CPU, {}))
            return ort.InferenceSession(str(self.path), options, providers=chain, enable_fallback=0)
        # A plugin's: named by its devices.
        for ep, given in chain:
            devices = [device for device in ort.get_ep_devices() if device.ep_name == ep]
            options.add_provider_for_devices(devices, given)
        return ort.InferenceSession(str(self.path), options, enable_fallback=0)

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
        """Raise ProviderError where the provider is not used, warn where it left something."""
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
        """Run once, from arrays to arrays; all outputs when None.

        Raises:
            ProviderError: the provider failed, of memory for one; the session stays usable.
        """
        try:
            return self._session.run(outputs, feeds)
        except Exception as error:
            raise self._failed(error) from None

    def run_with_iobinding(self, binding: Any, *, returns_memory: bool = False) -> None:
        """Run once, on what is bound.

        Args:
            returns_memory: give back what the activations took, instead of keeping it for the next
                run.

        Raises:
            ProviderError: as `run`.
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
            "where memory was short, free some, or take a smaller variant or image size."
        )

    def io_binding(self) -> Any:
        return self._session.io_binding()

    def get_inputs(self) -> list[Any]:
        return self._session.get_inputs()

    def get_outputs(self) -> list[Any]:
        return self._session.get_outputs()


class LazySession(GraphSession):
    """A graph that is open only while it runs, each time anew."""

    def __init__(
        self,
        path: Path,
        choice: ProviderChoice,
        threads: int | None = None,
        *,
        has_int8_products: bool = False,
        records_placement: bool = False,
    ) -> None:
        """Note what to open; off the CPU, see that it opens."""
        self.path, self.choice, self._threads, self.placement = path, choice, threads, None
        self._has_int8_products = has_int8_products
        self.int8_weights = int8_weights_of(has_int8_products)
        if choice.ep != CPU or records_placement:
            self.placement = self._opened(records_placement).placement

    def run(self, outputs: Sequence[str] | None, feeds: Mapping[str, NDArray[Any]]) -> list[Any]:
        return self._opened().run(outputs, feeds)

    def _opened(self, records_placement: bool = False) -> GraphSession:
        return GraphSession(
            self.path,
            self.choice,
            self._threads,
            has_int8_products=self._has_int8_products,
            records_placement=records_placement,
        )


def session_options(threads: int | None) -> Any:
    """ONNX Runtime's SessionOptions as every graph has them."""
    options = import_onnxruntime().SessionOptions()
    options.intra_op_num_threads = threads or physical_cores() or 0
    options.log_severity_level = 3
    # A pattern is one block for all activations, beside what the first run took: a fifth more
    # memory for the vision encoder, and no faster.
    options.enable_mem_pattern = False
    # Sessions take turns: an idle one whose workers spin takes a core from the busy one.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def placement_of(session: Any) -> Placement | None:
    """Which provider took which nodes; None where this ONNX Runtime does not say."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    placement: dict[str, Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        operators = placement.setdefault(part.ep_name, Counter())
        operators.update(node.op_type for node in part.get_nodes())
    return placement
