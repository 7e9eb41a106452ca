"""A package's weights and graphs, from the checkpoint's files to disk."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

import onnx_ir as ir

from fastvlm_onnx.export.tensors.external_data import ALIGNMENT_BYTES, stored_at, write_tensors
from fastvlm_onnx.export.variants import Parts
from fastvlm_onnx.names import weights_file
from fastvlm_onnx.progress import Progress

# Smaller tensors stay inside the graph: some loaders refuse tiny external ones.
INLINE_BYTES: Final = 1024


class PackageWriter:
    """Writes embeddings, weights and graphs; one tensor, or a part of one, in memory at a time.

    Attributes:
        total_bytes: what will be written, near enough for a progress bar and a full disk.
    """

    def __init__(self, parts: Parts, progress: Progress) -> None:
        self._parts, self._progress = parts, progress
        self._written_bytes = 0
        self._tensors = self._by_file()
        self._shared = self._find_shared()
        self.total_bytes = sum(part.size_bytes for part in parts.embeddings) + sum(
            tensor.nbytes
            for file_name, tensors in self._tensors.items()
            for name, tensor in tensors.items()
            if (file_name, name) not in self._shared
        )
        self.total_bytes += sum(weights_bytes(parts.models[name]) for name in parts.inline)

    def write(self, folder: Path) -> None:
        for embeddings in self._parts.embeddings:
            embeddings.write(folder, partial(self._count, "token embeddings"))
        stored = {
            (data_file, name): stored_at(
                tensor := self._tensors[data_file][name],
                name,
                folder,
                file_name,
                ALIGNMENT_BYTES,
                tensor.nbytes,
            )
            for (data_file, name), file_name in self._shared.items()
        }
        for data_file, tensors in self._tensors.items():
            own = {name: t for name, t in tensors.items() if (data_file, name) not in stored}
            counted = partial(self._count, _stage(data_file))
            written = write_tensors(own, folder, data_file, counted)
            stored |= {(data_file, name): tensor for name, tensor in written.items()}
        for file_name, model in self._parts.models.items():
            for name, value in initializers(model):
                value.const_value = stored.get((weights_file(file_name), name), value.const_value)
            ir.save(model, folder / file_name)
            if file_name in self._parts.inline:
                self._count(_stage(file_name), weights_bytes(model))

    def _by_file(self) -> dict[str, dict[str, ir.TensorProtocol]]:
        """Tensors by the file they go to; several graphs may read one."""
        files: dict[str, dict[str, ir.TensorProtocol]] = {}
        for file_name, model in self._parts.models.items():
            if file_name in self._parts.inline:
                continue
            tensors = files.setdefault(weights_file(file_name), {})
            for name, value in initializers(model):
                if value.const_value is not None and value.const_value.nbytes > INLINE_BYTES:
                    tensors.setdefault(name, value.const_value)
        return files

    def _find_shared(self) -> dict[tuple[str, str], str]:
        """Tensors of lm_heads whose bytes the token embeddings hold already, and their files."""
        return {
            (data_file, f"lm_head.{parameter}"): file_name
            for data_file, tensors in self._tensors.items()
            if self._parts.shares_head and "lm_head.weight" in tensors
            for embeddings in self._parts.embeddings
            for parameter, file_name in embeddings.head_files(
                tensors["lm_head.weight"].dtype
            ).items()
        }

    def _count(self, stage: str, size_bytes: int) -> None:
        self._written_bytes += size_bytes
        self._progress(stage, self._written_bytes, self.total_bytes)


def _stage(file_name: str) -> str:
    """What a file belongs to, in words."""
    return file_name.split(".")[0].replace("_", " ")


def weights_bytes(model: ir.Model) -> int:
    """Size of a graph's weights."""
    tensors = (value.const_value for _, value in initializers(model))
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def initializers(model: ir.Model) -> Iterator[tuple[str, ir.Value]]:
    """A model's initializers by name, those of subgraphs included."""
    for graph in model.graphs():
        yield from graph.initializers.items()
