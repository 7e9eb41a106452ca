"""Read FastVLMConfig from config.json and the shapes of tensors; refuse unbuilt configurations."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fastvlm_onnx.errors import CheckpointError, UnsupportedError
from fastvlm_onnx.export.architecture.config import (
    VISION_PATCH_SIZE,
    DecoderConfig,
    FastVLMConfig,
    VisionConfig,
)
from fastvlm_onnx.export.architecture.tensor_names import EMBED_TOKENS, LM_HEAD, VISION_PREFIX
from fastvlm_onnx.export.checkpoint.layouts import check_built
from fastvlm_onnx.export.tensors.lazy_array import LazyArray, are_equal

# Fields of config.json that change the computation, with the values that are built.
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
_FULL_ATTENTION: Final = "full_attention"


def read_config(
    fields: Mapping[str, Any],
    tensors: Mapping[str, LazyArray],
    vocab_size: int,
    path: Path,
    *,
    is_tied: bool,
) -> FastVLMConfig:
    """Read the sizes of the whole model; no tensor is read, only its shape.

    Args:
        fields: the fields of config.json under Apple's names.
        tensors: the checkpoint's tensors under Apple's names.
        vocab_size: the length of the tokenizer, to which predict.py cuts the embeddings.
        path: the path of config.json, for error messages.
        is_tied: whether lm_head is the embedding matrix, as the function `is_tied` finds.

    Raises:
        CheckpointError: a field is missing, has no sensible value, or contradicts the tensors.
        UnsupportedError: a field asks for a computation that is not built.
    """
    check_built(fields, BUILT_VALUES, path)
    layer_types = fields.get("layer_types") or []
    if not isinstance(layer_types, list):
        raise CheckpointError(f"{path}: layer_types is {layer_types!r}, expected a list.")
    for found in layer_types:
        if found != _FULL_ATTENTION:
            raise UnsupportedError(
                f"{path}: layer_types holds {found!r}, and only {_FULL_ATTENTION!r} is built."
            )

    def number(name: str, default: Any = None) -> Any:
        value = fields.get(name, default)
        if not _is_size(value):
            raise CheckpointError(f"{path}: {name} is {value!r}, expected a number above 0.")
        return value

    hidden_size, heads = number("hidden_size"), number("num_attention_heads")
    if hidden_size % heads:
        raise CheckpointError(
            f"{path}: hidden_size {hidden_size} is no multiple of num_attention_heads {heads}."
        )
    layers = number("num_hidden_layers")
    # A number far above the stored layers would take hours to fail.
    if (last := f"model.layers.{layers - 1}.input_layernorm.weight") not in tensors:
        raise CheckpointError(
            f"{path}: num_hidden_layers is {layers!r}, and the checkpoint has no tensor {last}."
        )
    _check_rows(tensors, vocab_size, path)
    eos = fields.get("eos_token_id")
    eos_token_ids = tuple(eos) if isinstance(eos, list) else (eos,)
    if not eos_token_ids or not all(
        isinstance(i, int) and 0 <= i < vocab_size for i in eos_token_ids
    ):
        raise CheckpointError(f"{path}: eos_token_id is {eos!r}, expected ids below {vocab_size}.")
    context = number("max_position_embeddings")
    return FastVLMConfig(
        vision=_read_vision_config(fields, tensors, path),
        decoder=DecoderConfig(
            hidden_size=hidden_size,
            intermediate_size=number("intermediate_size"),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=number("num_key_value_heads"),
            head_dim=hidden_size // heads,
            vocab_size=vocab_size,
            # predict.py cuts longer prompts at tokenizer_model_max_length.
            max_position_embeddings=min(context, number("tokenizer_model_max_length", context)),
            rope_theta=_rope_theta(fields, path),
            rms_norm_eps=float(number("rms_norm_eps")),
            eos_token_ids=eos_token_ids,
            is_tied=is_tied,
        ),
    )


def is_tied(tensors: Mapping[str, LazyArray]) -> bool:
    """Whether lm_head is the embedding matrix.

    The tensors decide: `tie_word_embeddings` of published configurations is wrong in both
    directions. Some published files hold the same matrix twice; then both are read and compared.
    """
    if LM_HEAD not in tensors:
        return True
    head, embeddings = tensors[LM_HEAD], tensors.get(EMBED_TOKENS)
    return embeddings is not None and head.shape == embeddings.shape and are_equal(head, embeddings)


def _check_rows(tensors: Mapping[str, LazyArray], vocab_size: int, path: Path) -> None:
    if EMBED_TOKENS not in tensors:
        raise CheckpointError(f"tensor {EMBED_TOKENS} is missing; the checkpoint is incomplete.")
    rows = tensors[EMBED_TOKENS].shape[0]
    if vocab_size > rows:
        raise CheckpointError(
            f"{path.parent}: the tokenizer has {vocab_size} tokens, and {EMBED_TOKENS} "
            f"only {rows} rows; they belong to different checkpoints."
        )


def _is_size(value: object) -> bool:
    """Whether a value is a number above 0 that a float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e300


def _rope_theta(fields: Mapping[str, Any], path: Path) -> float:
    """Read `rope_theta`, or `rope_parameters.rope_theta`, which transformers 5 writes."""
    parameters = fields.get("rope_parameters") or {}
    if not isinstance(parameters, dict):
        raise CheckpointError(f"{path}: rope_parameters is {parameters!r}, expected an object.")
    if parameters.get("rope_type", "default") != "default":
        raise UnsupportedError(
            f"{path}: rope_parameters.rope_type is {parameters['rope_type']!r}, and only "
            "'default' is built."
        )
    theta = fields.get("rope_theta", parameters.get("rope_theta"))
    if not _is_size(theta):
        raise CheckpointError(f"{path}: rope_theta is {theta!r}, expected a number above 0.")
    return float(theta)


def _read_vision_config(
    fields: Mapping[str, Any], tensors: Mapping[str, LazyArray], path: Path
) -> VisionConfig:
    """Read widths and depths from the tensors, and the image size from the tower's name."""
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

    stages = (0, 2, 4, 7, 10)  # other places hold downsamples and position encodings
    depths = []
    for stage in stages:
        prefix = f"{VISION_PREFIX}network.{stage}."
        blocks = (name.removeprefix(prefix).split(".")[0] for name in tensors if prefix in name)
        depths.append(max((int(block) for block in blocks if block.isdigit()), default=-1) + 1)
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
    """Raise UnsupportedError unless an image of `size` x `size` pixels can be encoded."""
    if size <= 0 or size % VISION_PATCH_SIZE or size > 4096:
        raise UnsupportedError(
            f"image size {size} is not built; expected a multiple of {VISION_PATCH_SIZE} "
            f"from {VISION_PATCH_SIZE} to 4096 pixels."
        )
