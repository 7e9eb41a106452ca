"""Open the files of a checkpoint's tensors: safetensors or PyTorch's format, whole or in shards."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 (gives numpy the name bfloat16)
import numpy as np
from safetensors import SafetensorError, safe_open

from fastvlm_onnx.errors import CheckpointError
from fastvlm_onnx.export.disk.json_files import read_json
from fastvlm_onnx.export.tensors.lazy_array import FloatArray, LazyArray

SAFETENSORS = "model.safetensors"
PICKLED = "pytorch_model.bin"
# In transformers' order of search. An index of shards is preferred to a single file.
WEIGHT_FILES = (SAFETENSORS, PICKLED)


def holds_weights(folder: Path) -> bool:
    """Return whether a folder has a weight file or an index; files are not opened."""
    return any(
        (folder / name).is_file() or (folder / f"{name}.index.json").is_file()
        for name in WEIGHT_FILES
    )


def open_weights(folder: Path) -> dict[str, LazyArray]:
    """Open `model.safetensors` or `pytorch_model.bin`, or the shards of their index.

    Returns:
        Every tensor under the name in its file. safetensors are read when they are used; PyTorch's
        files are mapped into memory.

    Raises:
        CheckpointError: a file, a shard or a tensor of the index is missing or damaged.
    """
    for name in WEIGHT_FILES:
        index_file = folder / f"{name}.index.json"
        if index_file.is_file():
            return _open_shards(folder, index_file)
        if (folder / name).is_file():
            return dict(open_weight_file(folder / name))
    raise CheckpointError(
        f"{folder / SAFETENSORS}: missing; download or copy the checkpoint again."
    )


def _open_shards(folder: Path, index_file: Path) -> dict[str, LazyArray]:
    weight_map = read_json(index_file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_file}: weight_map is missing; download it again.")
    shards = sorted(set(map(str, weight_map.values())))
    tensors: dict[str, LazyArray] = {}
    for position, shard in enumerate(shards, 1):
        path = folder / shard
        if path.parent != folder or not path.is_file():
            raise CheckpointError(
                f"{path}: missing (shard {position} of {len(shards)}); "
                "download or copy the checkpoint again."
            )
        tensors |= dict(open_weight_file(path))
    for name in weight_map:
        if name not in tensors:
            raise CheckpointError(
                f"tensor {name} is missing; {index_file.name} says it is in {weight_map[name]}: "
                "download the checkpoint again."
            )
    return tensors


def open_weight_file(path: Path) -> Iterator[tuple[str, LazyArray]]:
    """Open one file, in the format that its suffix states.

    Yields:
        Names and tensors.

    Raises:
        CheckpointError: the file is incomplete, damaged, or in another format.
    """
    return _open_safetensors(path) if path.suffix == ".safetensors" else _open_pickled(path)


def _open_safetensors(path: Path) -> Iterator[tuple[str, LazyArray]]:
    try:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                shape = tuple(file.get_slice(name).get_shape())
                rows = partial(_read_rows, path, name) if shape else None
                yield name, LazyArray(shape, partial(_read_whole, path, name), rows)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({error}); download or copy it again."
        ) from None


# The file is opened for each read. safetensors maps it into memory, and as long as it is open, the
# pages that were read count as this process's memory.


def _read_whole(path: Path, name: str) -> FloatArray:
    with safe_open(path, framework="np") as file:
        array: FloatArray = file.get_tensor(name).astype(np.float32)
    return array


def _read_rows(path: Path, name: str, start: int, stop: int) -> FloatArray:
    with safe_open(path, framework="np") as file:
        array: FloatArray = file.get_slice(name)[start:stop].astype(np.float32)
    return array


def _open_pickled(path: Path) -> Iterator[tuple[str, LazyArray]]:
    """Open a file in PyTorch's format; a pickle that would run code is refused."""
    try:
        import torch
    except ImportError:
        raise CheckpointError(
            f"{path}: PyTorch's format, and PyTorch is not installed; run `pip install torch`, "
            "or save the checkpoint as safetensors."
        ) from None
    try:
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            # The format before PyTorch 1.6 cannot be mapped.
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from None
    # The unpickler raises nearly any exception for a damaged file.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path}: not a file of PyTorch tensors and nothing else ({reason}); "
            "download it again, or save the checkpoint as safetensors."
        ) from None
    if not isinstance(tensors, dict):
        raise CheckpointError(
            f"{path}: holds a {type(tensors).__name__}, expected tensors by name."
        )
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise CheckpointError(
                f"{path}: {name} is a {type(tensor).__name__}, expected tensors only; "
                "give the model's weights, not a training state."
            )
        rows = partial(_torch_slice, tensor) if tensor.ndim else None
        yield name, LazyArray(tuple(tensor.shape), partial(_torch_slice, tensor, None, None), rows)


def _torch_slice(tensor: Any, start: int | None, stop: int | None) -> FloatArray:
    array: FloatArray = (tensor[start:stop] if tensor.ndim else tensor).float().numpy()
    return array
