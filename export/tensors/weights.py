"""A checkpoint's tensors by name, with a record of the tensors that were used."""

from collections.abc import Mapping

from fastvlm_onnx.errors import CheckpointError
from fastvlm_onnx.export.tensors.lazy_array import LazyArray


class Weights:
    """A checkpoint's tensors, taken by name and shape.

    `weights / "network.0"` gives the same checkpoint, where names are relative to that prefix.
    """

    def __init__(
        self, tensors: Mapping[str, LazyArray], prefix: str = "", taken: set[str] | None = None
    ) -> None:
        self._tensors, self._prefix = tensors, prefix
        self._taken: set[str] = set() if taken is None else taken

    def __truediv__(self, name: str) -> "Weights":
        return Weights(self._tensors, f"{self._prefix}{name}.", self._taken)

    def take(self, name: str, *shape: int) -> LazyArray:
        """Return the tensor `name`, which must have this shape, and record that it was used.

        Raises:
            CheckpointError: the tensor is missing or has another shape.
        """
        full_name = self._prefix + name
        if full_name not in self._tensors:
            raise CheckpointError(
                f"tensor {full_name} is missing, expected shape {list(shape)}; "
                "the checkpoint is incomplete: download or save it again."
            )
        tensor = self._tensors[full_name]
        if tensor.shape != shape:
            raise CheckpointError(
                f"tensor {full_name} has shape {list(tensor.shape)}, expected {list(shape)}; "
                "the checkpoint does not fit its own config.json."
            )
        self._taken.add(full_name)
        return tensor

    def rows_of(self, name: str) -> int:
        """Return the length of a tensor's first axis, or 0 if the tensor is missing."""
        tensor = self._tensors.get(self._prefix + name)
        return tensor.shape[0] if tensor else 0

    def check_all_taken(self) -> None:
        """Raise CheckpointError if a tensor that affects the answer was not used; name it."""
        surplus = sorted(
            name
            for name in self._tensors.keys() - self._taken
            # predict.py computes the classification head and discards its result. The counters
            # affect training only.
            if not name.endswith((".head.proj", ".num_batches_tracked"))
        )
        if surplus:
            more = f" and {len(surplus) - 3} more" if len(surplus) > 3 else ""
            raise CheckpointError(
                f"found surplus tensors {', '.join(surplus[:3])}{more}, which no FastVLM has; "
                "an export would ignore them and give other answers than the checkpoint."
            )
