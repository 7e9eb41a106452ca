"""The place of one compiled graph on disk, so that a provider compiles a graph once.

The name of its folder is a hash of everything that the result depends on: the graph with its
weights, the provider with its version and options, ONNX Runtime's version, and the processor.
"""

import hashlib
import json
import os
import shutil
import threading
import uuid
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from fastvlm_onnx.runtime.ort.compiled_cache import (
    RECORD_FILE,
    UNFINISHED,
    Record,
    compiled_folder,
    is_whole,
    limit_bytes,
    read_record,
    size_and_crc,
    trim,
    warn_of_folder,
    write_record,
)
from fastvlm_onnx.runtime.ort.hardware import processor, processor_features
from fastvlm_onnx.runtime.ort.plugins import provider_version
from fastvlm_onnx.runtime.ort.providers import ProviderOptions, import_onnxruntime, short_name

Placement = Mapping[str, Counter[str]]
"""Number of nodes, by provider (ONNX Runtime's name) and operator."""

CONTEXT_SUFFIX: Final = ".onnx"


class CompiledGraph:
    """The place of one compiled graph, whether it exists or not.

    Attributes:
        folder: the folder that holds the graph once it is compiled.
    """

    def __init__(self, graph: str, digest: str, ep: str, options: ProviderOptions) -> None:
        """Name the folder; nothing is read or written.

        Args:
            graph: the name of the graph's file.
            digest: a hash of the graph and its weights.
            ep: ONNX Runtime's name of the provider.
            options: the provider's options.
        """
        self._graph, self._ep = graph, ep
        self._version = provider_version(ep)
        ort_version = import_onnxruntime().__version__
        parts = [
            [digest, ep, self._version, ort_version, sorted(options.items())],
            [processor(), processor_features()],
        ]
        name = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        self.folder = compiled_folder() / name[:40]

    @property
    def context(self) -> Path | None:
        """The EPContext model, which ONNX Runtime opens in place of the graph; None without one."""
        return _context_in(self.folder)

    def exists(self) -> bool:
        """Whether a compiled graph is there; its files are not checked."""
        return self.context is not None

    def read(self) -> Placement | None:
        """Check the files, and note that they are used.

        Returns:
            The placement when the graph was compiled; None if there is no compiled graph. A damaged
            graph is deleted.
        """
        record = read_record(self.folder)
        if record is None or self.context is None or not is_whole(self.folder, record):
            self.delete()
            return None
        _note_use(self.folder)
        return {ep: Counter(operators) for ep, operators in record.placement.items()}

    def delete(self) -> None:
        """Delete the folder if it exists."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def begin(self) -> Path | None:
        """Make an empty folder for a graph that is being compiled.

        Returns:
            None if nothing is to be kept, or if the folder cannot be made, which is logged.
        """
        if not limit_bytes():
            return None
        unfinished = self.folder.with_name(
            f"{UNFINISHED}{self.folder.name}-{os.getpid()}-{threading.get_ident()}"
        )
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
        except OSError as error:
            warn_of_folder(error.strerror or str(error))
            return None
        return unfinished

    def finish(self, unfinished: Path, placement: Placement | None) -> None:
        """Keep the compiled graph, and delete old graphs beyond the limit.

        A graph that the provider took in part is not kept: the other nodes' weights are in the
        package.

        Args:
            unfinished: the folder of `begin`, with the provider's files.
            placement: the nodes that each provider took; None if they are not known.
        """
        if not placement or set(placement) != {self._ep} or _context_in(unfinished) is None:
            self.abandon(unfinished)
            return
        try:
            files = {path.name: size_and_crc(path) for path in unfinished.iterdir()}
            self._write_record(unfinished, placement, files)
            self.delete()
            unfinished.rename(self.folder)
        except OSError as error:  # the disk is full, or another process was faster
            self.abandon(unfinished)
            if not self.folder.is_dir():
                warn_of_folder(error.strerror or str(error))
        trim()

    @staticmethod
    def context_entries(unfinished: Path) -> list[tuple[str, str]]:
        """Return the session's entries that make a provider write its compiled graph."""
        return [
            ("ep.context_enable", "1"),
            # OpenVINO's plugin remembers files by path: a graph that is made anew in the same
            # process needs another name.
            ("ep.context_file_path", str(unfinished / f"{uuid.uuid4().hex}{CONTEXT_SUFFIX}")),
            ("ep.context_embed_mode", "0"),
        ]

    @staticmethod
    def abandon(unfinished: Path) -> None:
        """Delete the folder of `begin`."""
        shutil.rmtree(unfinished, ignore_errors=True)

    def make_folder(self) -> Path | None:
        """Make the folder for a provider that writes and checks its files itself.

        Returns:
            None if nothing is to be kept, or if the folder cannot be made, which is logged.
        """
        if not limit_bytes():
            return None
        model = self.folder / "model"
        try:
            if not model.is_dir():
                model.mkdir(parents=True)
                self._write_record(self.folder, {}, {})
        except OSError as error:
            warn_of_folder(error.strerror or str(error))
            return None
        _note_use(self.folder)
        trim(keep=self.folder)
        return model

    def _write_record(
        self, folder: Path, placement: Placement, files: Mapping[str, tuple[int, int]]
    ) -> None:
        nodes = {ep: dict(operators) for ep, operators in placement.items()}
        name = short_name(self._ep)
        write_record(folder, Record(self._graph, name, self._version, nodes, files))


def _context_in(folder: Path) -> Path | None:
    return next(folder.glob(f"*{CONTEXT_SUFFIX}"), None)


def _note_use(folder: Path) -> None:
    try:
        os.utime(folder / RECORD_FILE)
    except OSError:  # a folder that cannot be written, or another process deleted it
        return
