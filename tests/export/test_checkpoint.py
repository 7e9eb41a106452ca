"""Reading of checkpoints: errors name every mismatch, and tensors are read when they are used."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from random_checkpoint import LanguageSize, write_random_checkpoint

from fastvlm_onnx import CheckpointError, UnsupportedError
from fastvlm_onnx.export.checkpoint.reader import is_whole_checkpoint
from fastvlm_onnx.export.pipeline import export_package
from fastvlm_onnx.export.sources.open_checkpoint import open_checkpoint
from fastvlm_onnx.export.tensors.lazy_array import LazyArray
from fastvlm_onnx.export.tensors.weights import Weights

Edit = Callable[[Path, Callable[[dict], object]], None]
EditTensors = Callable[[Callable[[dict[str, np.ndarray]], object]], None]

VISION = "model.vision_tower.vision_tower.model."


def refusal(checkpoint: Path, error: type[CheckpointError] = CheckpointError) -> str:
    """Return the one line of a refused export, which must leave no file behind."""
    destination = checkpoint.parent / "refused-onnx"
    before = set(checkpoint.parent.iterdir())
    with pytest.raises(error) as caught:
        export_package(checkpoint, destination)
    assert set(checkpoint.parent.iterdir()) == before
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- sizes ---------------------------------------------------------------------------------------


def test_sizes_are_read_from_the_tensors_and_the_config(checkpoint: Path) -> None:
    config = open_checkpoint(checkpoint).config
    assert config.vision.widths == (16, 32, 64, 128, 256)
    assert config.vision.depths == (1, 2, 5, 4, 3)
    assert config.vision.image_size == 128
    assert config.decoder.vocab_size == 739  # not the 768 rows of the matrix
    assert config.decoder.head_dim == 16
    assert config.decoder.is_tied


def test_the_context_ends_where_predict_py_cuts_a_prompt(checkpoint: Path) -> None:
    # max_position_embeddings is 32,768, and tokenizer_model_max_length 8,192.
    assert open_checkpoint(checkpoint).config.decoder.max_position_embeddings == 8192


def test_an_untied_lm_head_is_used_whatever_the_config_says(
    checkpoint: Path, edit_json: Edit, edit_tensors: EditTensors
) -> None:
    edit_json(checkpoint / "config.json", lambda c: c.update(tie_word_embeddings=True))
    edit_tensors(lambda t: t.update({"lm_head.weight": -t["model.embed_tokens.weight"]}))
    assert not open_checkpoint(checkpoint).config.decoder.is_tied
    export_package(checkpoint, checkpoint.parent / "onnx")


def test_tensors_are_read_when_they_are_needed_and_not_kept() -> None:
    reads = []

    def read() -> np.ndarray:
        reads.append(1)
        return np.ones((2, 3), np.float32)

    weights = Weights({"a.weight": LazyArray((2, 3), read)})
    doubled = (weights / "a").take("weight", 2, 3).then(lambda a: 2 * a, 2, 3)
    assert reads == []
    np.testing.assert_array_equal(doubled.read(), np.full((2, 3), 2))
    doubled.read()
    assert len(reads) == 2


# --- tensors -------------------------------------------------------------------------------------


def test_the_classification_head_and_the_counters_are_not_exported(checkpoint: Path) -> None:
    names = open_checkpoint(checkpoint).tensors
    assert f"{VISION}head.proj" in names
    assert any(name.endswith("num_batches_tracked") for name in names)
    export_package(checkpoint, checkpoint.parent / "onnx")


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.self_attn.q_norm.weight",
        f"{VISION}network.0.0.gate",
        "lm_head.bias",
        "head.proj",
    ],
)
def test_a_surplus_tensor_is_named(checkpoint: Path, edit_tensors: EditTensors, name: str) -> None:
    edit_tensors(lambda t: t.update({name: np.zeros(3, np.float32)}))
    assert name in refusal(checkpoint)


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.2.mlp.up_proj.weight",
        "model.layers.0.self_attn.k_proj.bias",
        "model.mm_projector.2.bias",
        f"{VISION}conv_exp.se.reduce.weight",
        f"{VISION}network.2.1.convffn.conv.bn.running_var",
        f"{VISION}network.7.0.token_mixer.qkv.weight",
    ],
)
def test_a_missing_tensor_is_named(checkpoint: Path, edit_tensors: EditTensors, name: str) -> None:
    edit_tensors(lambda t: t.pop(name))
    assert f"tensor {name} is missing" in refusal(checkpoint)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(
    checkpoint: Path, edit_tensors: EditTensors
) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    edit_tensors(lambda t: t.update({name: t[name][:, :-1].copy()}))
    assert f"tensor {name} has shape [96, 159], expected [96, 160]" in refusal(checkpoint)


def test_fewer_layers_than_the_config_says_is_an_error(checkpoint: Path, edit_json: Edit) -> None:
    edit_json(checkpoint / "config.json", lambda c: c.update(num_hidden_layers=4))
    assert "model.layers.3." in refusal(checkpoint)


def test_more_layers_than_the_config_says_is_an_error(checkpoint: Path, edit_json: Edit) -> None:
    edit_json(checkpoint / "config.json", lambda c: c.update(num_hidden_layers=2))
    assert "surplus tensors model.layers.2." in refusal(checkpoint)


# --- files ---------------------------------------------------------------------------------------


@pytest.fixture
def sharded(
    tmp_path: Path, demo_vision: dict[str, tuple[int, ...]], small_language: LanguageSize
) -> Path:
    folder = tmp_path / "sharded"
    write_random_checkpoint(
        folder, small_language, vision=demo_vision, image_size=128, shard_bytes=2_000_000
    )
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


def test_shards_hold_the_same_model_as_one_file(sharded: Path, checkpoint: Path) -> None:
    whole, parts = (export_package(c, c.parent / f"{c.name}-onnx") for c in (checkpoint, sharded))
    weights = [name for name in whole.files if name.endswith((".data", ".npy"))]
    assert len(weights) == 4
    for name in weights:
        assert whole.files[name] == parts.files[name]


def test_a_missing_shard_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.unlink()
    message = refusal(sharded)
    assert f"{shard.name}: missing (shard 2 of" in message


def test_a_shard_that_lacks_a_tensor_of_the_index_is_named(sharded: Path, edit_json: Edit) -> None:
    edit_json(
        sharded / "model.safetensors.index.json",
        lambda index: index["weight_map"].update(
            {"model.extra": next(iter(index["weight_map"].values()))}
        ),
    )
    assert "tensor model.extra is missing" in refusal(sharded)


def test_an_index_cannot_point_outside_the_folder(sharded: Path, edit_json: Edit) -> None:
    edit_json(
        sharded / "model.safetensors.index.json",
        lambda index: index["weight_map"].update({"x": "../checkpoint/model.safetensors"}),
    )
    assert "../checkpoint/model.safetensors: missing" in refusal(sharded)


def test_weights_that_were_cut_off_are_named(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "model.safetensors: not a whole safetensors file" in refusal(checkpoint)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "merges.txt", "added_tokens.json"]
)
def test_a_missing_file_is_named(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    assert name in refusal(checkpoint)


def test_a_checkpoint_without_any_tokenizer_is_refused(checkpoint: Path) -> None:
    for name in ("vocab.json", "merges.txt", "added_tokens.json"):
        (checkpoint / name).unlink()
    assert "vocab.json" in refusal(checkpoint)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    assert "found no config.json" in refusal(folder)


def test_a_missing_path_is_refused(tmp_path: Path) -> None:
    assert "absent: no such folder" in refusal(tmp_path / "absent")


# --- configurations ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "llama"),
        ("model_type", None),
        ("mm_projector_type", "linear"),
        ("image_aspect_ratio", "anyres"),
        ("mm_patch_merge_type", "spatial"),
        ("mm_use_im_start_end", True),
        ("use_sliding_window", True),
        ("hidden_act", "gelu"),
        ("rope_scaling", {"type": "yarn"}),
        ("mm_vision_tower", "openai/clip-vit-large-patch14-336"),
        ("mm_vision_tower", "mobileclip_l_1000"),
    ],
)
def test_a_configuration_that_is_not_built_is_named_with_its_value(
    checkpoint: Path, edit_json: Edit, field: str, value: object
) -> None:
    edit_json(checkpoint / "config.json", lambda c: c.update({field: value}))
    message = refusal(checkpoint, UnsupportedError)
    if value != "mobileclip_l_1000":
        assert f"{field} is {value!r}" in message
    else:
        assert "image size 1000" in message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", None),
        ("hidden_size", "96"),
        ("num_attention_heads", 0),
        ("num_hidden_layers", 10**30),
        ("rope_theta", -1.0),
        ("rope_theta", 10**400),
        ("rms_norm_eps", 10**400),
        ("rope_parameters", 3),
        ("layer_types", 3),
        ("eos_token_id", None),
        ("eos_token_id", 739),
    ],
)
def test_an_invalid_field_is_named_with_its_value(
    checkpoint: Path, edit_json: Edit, field: str, value: object
) -> None:
    edit_json(checkpoint / "config.json", lambda c: c.update({field: value}))
    assert f"{field} is {value!r}"[:60] in refusal(checkpoint)  # long numbers lose their middle


@pytest.mark.parametrize("text", ["{", "[]", "null"])
def test_a_config_that_is_no_json_object_is_refused(checkpoint: Path, text: str) -> None:
    (checkpoint / "config.json").write_text(text)
    assert "config.json" in refusal(checkpoint)


def test_a_tokenizer_of_another_model_is_refused(checkpoint: Path, edit_json: Edit) -> None:
    vocab = json.loads((checkpoint / "vocab.json").read_text())
    added = {"<|endoftext|>": 900, "<|im_start|>": 901, "<|im_end|>": 902}
    vocab |= {f"more{i}": i for i in range(len(vocab), 900)}
    (checkpoint / "vocab.json").write_text(json.dumps(vocab))
    (checkpoint / "added_tokens.json").write_text(json.dumps(added))
    assert "the tokenizer has 903 tokens" in refusal(checkpoint)


def test_added_tokens_that_do_not_follow_the_vocabulary_are_refused(
    checkpoint: Path, edit_json: Edit
) -> None:
    edit_json(checkpoint / "added_tokens.json", lambda a: a.update({"<|im_end|>": 760}))
    assert "<|im_end|> the id 760" in refusal(checkpoint)


# --- completeness --------------------------------------------------------------------------------


def test_a_checkpoint_is_found_whole_without_reading_its_tensors(
    checkpoint: Path, edit_tensors: Callable
) -> None:
    # A comparison of the two matrices would read a NaN, which is refused.
    def store_nan_twice(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.embed_tokens.weight"][0, 0] = np.nan
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    edit_tensors(store_nan_twice)
    with pytest.raises(CheckpointError, match="NaN"):
        open_checkpoint(checkpoint)
    assert is_whole_checkpoint(checkpoint)


@pytest.mark.parametrize("name", ["config.json", "merges.txt", "model.safetensors"])
def test_a_checkpoint_with_a_cut_file_is_not_whole(checkpoint: Path, name: str) -> None:
    assert is_whole_checkpoint(checkpoint)
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(content[: len(content) // 2])
    assert not is_whole_checkpoint(checkpoint)
