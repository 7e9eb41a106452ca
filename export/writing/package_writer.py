"""Write a package's token embeddings, weights and graphs from the checkpoint's files."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import onnx_ir as ir

from fastvlm_onnx.export.tensors.external_data import ALIGNMENT_BYTES, stored_at, write_tensors
from fastvlm_onnx.export.writing.graph_record import describe_graph, initializers
from fastvlm_onnx.export.writing.graph_set import GraphSet
from fastvlm_onnx.names import scale_file
from fastvlm_onnx.package import Graph
from fastvlm_onnx.progress import Progress

# Smaller tensors stay inside the graph: some loaders refuse tiny external tensors.
INLINE_BYTES: Final = 1024


@dataclass(frozen=True)
class WeightsFile:
    """The tensors of one weights file.

    Attributes:
        stage: the graph's name for people.
        own: tensors that the file stores, by name, in the order of the file.
        shared: tensors whose bytes a file of token embeddings stores, by name.
        shared_files: the files of the shared tensors, by name.
    """

    stage: str
    own: dict[str, ir.TensorProtocol]
    shared: dict[str, ir.TensorProtocol]
    shared_files: dict[str, str]


class PackageWriter:
    """Writes embeddings, weights and graphs with one tensor, or a part of it, in memory at a time.

    Attributes:
        total_bytes: the bytes to write, near enough for a progress bar and the check of the disk.
    """

    def __init__(self, graph_set: GraphSet, progress: Progress) -> None:
        self._graph_set, self._progress = graph_set, progress
        self._written_bytes = 0
        names = [embeddings.file_name for embeddings in graph_set.embeddings]
        self._npy_files = {*names, *map(scale_file, names)}
        self._files = _weights_files(graph_set, self._npy_files)
        inside = [graph.model for graph in graph_set.graphs.values() if graph.weights_file is None]
        self.total_bytes = (
            sum(embeddings.size_bytes for embeddings in graph_set.embeddings)
            + sum(tensor.nbytes for file in self._files.values() for tensor in file.own.values())
            + sum(map(weights_bytes, inside))
        )

    def write(self, folder: Path) -> dict[str, Graph]:
        """Write the files and return the records of the graphs, by file name."""
        for embeddings in self._graph_set.embeddings:
            embeddings.write(folder, partial(self._count, "token embeddings"))
        stored: dict[str, dict[str, ir.ExternalTensor]] = {}
        for name, file in self._files.items():
            written = write_tensors(file.own, folder, name, partial(self._count, file.stage))
            for tensor_name, tensor in file.shared.items():
                npy = file.shared_files[tensor_name]
                written[tensor_name] = in_npy(tensor, tensor_name, folder, npy)
            stored[name] = written
        records = {}
        for name, graph in self._graph_set.graphs.items():
            for tensor_name, value in initializers(graph.model):
                file_name = graph.file_of(tensor_name)
                if file_name in self._npy_files and value.const_value is not None:
                    value.const_value = in_npy(value.const_value, tensor_name, folder, file_name)
                elif file_name and tensor_name in stored[file_name]:
                    value.const_value = stored[file_name][tensor_name]
            ir.save(graph.model, folder / name)
            records[name] = describe_graph(graph.model)
            if graph.weights_file is None:
                self._count(graph.stage, weights_bytes(graph.model))
        return records

    def _count(self, stage: str, size_bytes: int) -> None:
        self._written_bytes += size_bytes
        self._progress(stage, self._written_bytes, self.total_bytes)


def in_npy(tensor: ir.TensorProtocol, name: str, folder: Path, file_name: str) -> ir.ExternalTensor:
    """Return a reference to a matrix of the token embeddings' files."""
    # The values of an .npy file begin at ALIGNMENT_BYTES.
    return stored_at(tensor, name, folder, file_name, ALIGNMENT_BYTES, tensor.nbytes)


def _weights_files(graph_set: GraphSet, npy_files: Collection[str]) -> dict[str, WeightsFile]:
    """Sort the tensors of all graphs into weights files; several graphs may read one tensor.

    Args:
        graph_set: the graphs.
        npy_files: the files of token embeddings, which are written already.
    """
    files: dict[str, WeightsFile] = {}
    for graph in graph_set.graphs.values():
        for name, value in initializers(graph.model):
            file_name = graph.file_of(name)
            if file_name is None or file_name in npy_files:
                continue
            file = files.setdefault(file_name, WeightsFile(graph.stage, {}, {}, {}))
            if value.const_value is not None and value.const_value.nbytes > INLINE_BYTES:
                file.own.setdefault(name, value.const_value)
    if graph_set.shares_head:
        for file in files.values():
            _share_head(file, graph_set)
    return files


def _share_head(file: WeightsFile, graph_set: GraphSet) -> None:
    """Move the tensors of lm_head that the token embeddings store from `own` to `shared`."""
    head = file.own.get("lm_head.weight")
    if head is None:
        return
    for embeddings in graph_set.embeddings:
        for parameter, embeddings_file in embeddings.head_files(head.dtype).items():
            name = f"lm_head.{parameter}"
            file.shared[name] = file.own.pop(name)
            file.shared_files[name] = embeddings_file


def weights_bytes(model: ir.Model) -> int:
    """Return the size of a graph's weights."""
    tensors = (value.const_value for _, value in initializers(model))
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
