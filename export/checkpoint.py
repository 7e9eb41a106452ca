"""Open a checkpoint: its configuration, and its tensors by name, none of them read before use.

Tensors are numpy arrays behind `LazyArray`; nothing here knows of graphs or of torch.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from fastvlm_onnx.errors import CheckpointError, UnsupportedError
from fastvlm_onnx.export.config import (
    VISION_PATCH_SIZE,
    DecoderConfig,
    FastVLMConfig,
    VisionConfig,
)
from fastvlm_onnx.export.tokenizer import read_tokenizer

FloatArray = NDArray[np.float32]

VISION_PREFIX = "model.vision_tower.vision_tower.model."
PROJECTOR_PREFIX = "model.mm_projector."
DEMO = "demo"
DEMO_CHECKPOINT = "demo/checkpoint"

# config.json fields that would change the computation, and the only values that are built.
BUILT_VALUES: Mapping[str, tuple[Any, ...]] = {
    "mm_projector_type": ("mlp2x_gelu",),
    "image_aspect_ratio": ("pad",),
    "mm_patch_merge_type": ("flat",),
    "mm_use_im_start_end": (False,),
    "mm_use_im_patch_token": (False,),
    "hidden_act": ("silu",),
    "use_sliding_window": (False,),
    "rope_scaling": (None,),
}


@dataclass(frozen=True)
class LazyArray:
    """A float32 array that is computed each time it is read, and kept by nobody."""

    shape: tuple[int, ...]
    read: Callable[[], FloatArray]

    def then(self, change: Callable[[FloatArray], FloatArray], *shape: int) -> "LazyArray":
        """The same array after `change`, which gives an array of `shape`."""
        return LazyArray(shape, lambda: change(self.read()))

    @property
    def size_bytes(self) -> int:
        return 4 * math.prod(self.shape)


class Weights:
    """A checkpoint's tensors, handed out by name; remembers which were asked for.

    `weights / "network.0"` is the same checkpoint seen from that prefix.
    """

    def __init__(
        self, tensors: Mapping[str, LazyArray], prefix: str = "", taken: set[str] | None = None
    ) -> None:
        self._tensors, self._prefix = tensors, prefix
        self._taken: set[str] = set() if taken is None else taken

    def __truediv__(self, name: str) -> "Weights":
        return Weights(self._tensors, f"{self._prefix}{name}.", self._taken)

    def take(self, name: str, *shape: int) -> LazyArray:
        """The tensor `name`, which must have this shape.

        Raises:
            CheckpointError: there is no such tensor, or it has another shape.
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
        """Length of a tensor's first axis; 0 when there is no such tensor."""
        tensor = self._tensors.get(self._prefix + name)
        return tensor.shape[0] if tensor else 0

    def check_all_taken(self) -> None:
        """Raise CheckpointError, naming them, if tensors were left over that mean something."""
        surplus = sorted(
            name
            for name in self._tensors.keys() - self._taken
            # predict.py computes the classification head and throws its result away; the
            # counters matter to training only.
            if not name.endswith((".head.proj", ".num_batches_tracked"))
        )
        if surplus:
            more = f" and {len(surplus) - 3} more" if len(surplus) > 3 else ""
            raise CheckpointError(
                f"found surplus tensors {', '.join(surplus[:3])}{more}, which no FastVLM has; "
                "this model would not compute what its checkpoint was trained for."
            )


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint.

    Attributes:
        name: what to call it in a manifest.
        config: sizes, read off config.json and the tensors' shapes.
        tensors: every tensor under Apple's names.
        tokenizer: the text of a tokenizer.json.
        license: the text of the licence file that lies beside the weights, if one does.
    """

    name: str
    config: FastVLMConfig
    tensors: Mapping[str, LazyArray]
    tokenizer: str
    license: str | None


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Open a checkpoint folder in Apple's layout, or the built-in `demo`.

    Raises:
        CheckpointError: no such folder, a file or shard missing, not a FastVLM.
        UnsupportedError: a configuration that is not built; the field and its value are named.
    """
    folder = _locate(source)
    fields = _read_json(folder / "config.json", "expected a checkpoint folder as Apple stores it")
    _check_fields(fields, folder / "config.json")
    tensors = _open_tensors(folder)
    tokenizer = read_tokenizer(folder)
    config = _read_config(fields, tensors, tokenizer.length, folder / "config.json")
    license_file = folder / "LICENSE_MODEL"
    return Checkpoint(
        name=DEMO if str(source) == DEMO else folder.name,
        config=config,
        tensors=tensors,
        tokenizer=tokenizer.text,
        license=license_file.read_text("utf-8") if license_file.is_file() else None,
    )


def _locate(source: str | Path) -> Path:
    if str(source) == DEMO:
        import fastvlm_onnx

        return Path(fastvlm_onnx.__file__).parent / DEMO_CHECKPOINT
    folder = Path(source)
    if not folder.is_dir():
        raise CheckpointError(
            f"{source}: no such folder; expected a FastVLM checkpoint folder, or `{DEMO}`."
        )
    return folder.resolve()


def _read_json(path: Path, expected: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent}: found no {path.name}; {expected} (config.json, *.safetensors, "
            "vocab.json, merges.txt, added_tokens.json)."
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}).") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: found a {type(content).__name__}, expected an object.")
    return content


def _check_fields(fields: Mapping[str, Any], path: Path) -> None:
    model_type = fields.get("model_type")
    if model_type != "llava_qwen2":
        raise UnsupportedError(
            f"{path}: model_type is {model_type!r}, expected 'llava_qwen2'; "
            "only FastVLM checkpoints can be exported."
        )
    for name, built in BUILT_VALUES.items():
        if name in fields and fields[name] not in built:
            raise UnsupportedError(
                f"{path}: {name} is {fields[name]!r}, and only "
                f"{' or '.join(map(repr, built))} is built."
            )


# --- tensors -----------------------------------------------------------------------------------


def _open_tensors(folder: Path) -> dict[str, LazyArray]:
    """Every tensor of `model.safetensors`, or of the shards that its index names."""
    index_file = folder / "model.safetensors.index.json"
    weight_map: dict[str, str] = {}
    shards = ["model.safetensors"]
    if index_file.is_file():
        weight_map = _read_json(index_file, "").get("weight_map") or {}
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index_file}: weight_map is missing; download it again.")
        shards = sorted(set(map(str, weight_map.values())))
    tensors: dict[str, LazyArray] = {}
    for position, shard in enumerate(shards, 1):
        path = folder / shard
        if path.parent != folder or not path.is_file():
            part = f" (shard {position} of {len(shards)})" if weight_map else ""
            raise CheckpointError(f"{path}: missing{part}; download or copy the checkpoint again.")
        tensors |= dict(_open_safetensors(path))
    for name in weight_map:
        if name not in tensors:
            raise CheckpointError(
                f"tensor {name} is missing; {index_file.name} says it is in {weight_map[name]}: "
                "download the checkpoint again."
            )
    return tensors


def _open_safetensors(path: Path) -> Iterator[tuple[str, LazyArray]]:
    try:
        file = safe_open(path, framework="np")
        for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
            shape = tuple(file.get_slice(name).get_shape())
            yield name, LazyArray(shape, partial(_read_float32, file, name))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({error}); download or copy it again."
        ) from None


def _read_float32(file: Any, name: str) -> FloatArray:
    array: FloatArray = file.get_tensor(name).astype(np.float32)
    return array


# --- configuration -----------------------------------------------------------------------------


def _read_config(
    fields: Mapping[str, Any], tensors: Mapping[str, LazyArray], vocab_size: int, path: Path
) -> FastVLMConfig:
    def number(name: str) -> Any:
        value = fields.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise CheckpointError(f"{path}: {name} is {value!r}, expected a number above 0.")
        return value

    def rows(name: str) -> tuple[int, ...]:
        if name not in tensors:
            raise CheckpointError(f"tensor {name} is missing; the checkpoint is incomplete.")
        return tensors[name].shape

    hidden_size, heads = number("hidden_size"), number("num_attention_heads")
    embed_rows = rows("model.embed_tokens.weight")[0]
    if vocab_size > embed_rows:
        raise CheckpointError(
            f"{path.parent}: the tokenizer has {vocab_size} tokens, and model.embed_tokens.weight "
            f"only {embed_rows} rows; they belong to different checkpoints."
        )
    eos = fields.get("eos_token_id")
    eos_token_ids = tuple(eos) if isinstance(eos, list) else (eos,)
    if not all(isinstance(i, int) and 0 <= i < vocab_size for i in eos_token_ids):
        raise CheckpointError(f"{path}: eos_token_id is {eos!r}, expected ids below {vocab_size}.")
    context = number("max_position_embeddings")
    return FastVLMConfig(
        vision=_read_vision_config(fields, tensors, path),
        decoder=DecoderConfig(
            hidden_size=hidden_size,
            intermediate_size=number("intermediate_size"),
            num_hidden_layers=number("num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=number("num_key_value_heads"),
            head_dim=hidden_size // heads,
            vocab_size=vocab_size,
            # predict.py cuts longer prompts at tokenizer_model_max_length.
            max_position_embeddings=min(context, fields.get("tokenizer_model_max_length", context)),
            rope_theta=float(number("rope_theta")),
            rms_norm_eps=float(number("rms_norm_eps")),
            eos_token_ids=eos_token_ids,
            is_tied=_is_tied(tensors),
        ),
    )


def _is_tied(tensors: Mapping[str, LazyArray]) -> bool:
    """Whether lm_head is the embedding matrix: the tensors say so, whatever the config says.

    Published configs have `tie_word_embeddings` wrong in both directions.
    """
    return "lm_head.weight" not in tensors


def _read_vision_config(
    fields: Mapping[str, Any], tensors: Mapping[str, LazyArray], path: Path
) -> VisionConfig:
    """Widths and depths from the tensors; the image size from the tower's name."""
    tower = str(fields.get("mm_vision_tower"))
    size = tower.rsplit("_", 1)[-1]
    if not tower.startswith("mobileclip_l_") or not size.isdigit():
        raise UnsupportedError(
            f"{path}: mm_vision_tower is {tower!r}, and only 'mobileclip_l_<pixels>' is built."
        )
    check_image_size(int(size))

    def shape(name: str) -> tuple[int, ...]:
        if VISION_PREFIX + name not in tensors:
            raise CheckpointError(
                f"tensor {VISION_PREFIX}{name} is missing; the checkpoint holds no whole "
                "FastViTHD vision encoder."
            )
        return tensors[VISION_PREFIX + name].shape

    stages = (0, 2, 4, 7, 10)  # the others are downsamples and position encodings
    depths = []
    for stage in stages:
        blocks = {
            int(name.removeprefix(f"{VISION_PREFIX}network.{stage}.").split(".")[0])
            for name in tensors
            if name.startswith(f"{VISION_PREFIX}network.{stage}.")
        }
        depths.append(max(blocks, default=-1) + 1)
    fc1 = [shape(f"network.{stage}.0.convffn.fc1.weight") for stage in stages]
    return VisionConfig(
        image_size=int(size),
        depths=tuple(depths),  # type: ignore[arg-type]
        widths=tuple(s[1] for s in fc1),  # type: ignore[arg-type]
        ffn_widths=tuple(s[0] for s in fc1),  # type: ignore[arg-type]
        hidden_size=shape("conv_exp.reparam_conv.weight")[0],
        se_width=shape("conv_exp.se.reduce.weight")[0],
    )


def check_image_size(size: int) -> None:
    """Raise UnsupportedError unless `size` can be the side of the vision encoder's input."""
    if size <= 0 or size % VISION_PATCH_SIZE or size > 4096:
        raise UnsupportedError(
            f"image size {size} is not built; expected a multiple of {VISION_PATCH_SIZE} "
            f"from {VISION_PATCH_SIZE} to 4096 pixels."
        )
