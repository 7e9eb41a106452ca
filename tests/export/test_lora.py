"""A LoRA adapter over a base is merged as peft merges it, or refused with a reason."""

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import load_file, save_file

import fastvlm_onnx
from fastvlm_onnx import CheckpointError, UnsupportedError
from fastvlm_onnx.export.pipeline import export_package
from fastvlm_onnx.export.sources.open_checkpoint import open_checkpoint
from fastvlm_onnx.export.verification.reference_model import build_decoder

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LANGUAGE = ("model.layers.", "model.embed_tokens.", "model.norm.", "lm_head.")
Merged = dict[str, np.ndarray]
Train = Callable[..., Merged]


def language_model(base: Path) -> torch.nn.Module:
    """Build the base's Qwen2 with all rows of its embeddings, as a trainer does."""
    checkpoint = open_checkpoint(base)
    rows = checkpoint.tensors["model.embed_tokens.weight"].shape[0]
    model = build_decoder(replace(checkpoint.config.decoder, vocab_size=rows))
    state = {
        name: torch.from_numpy(tensor.read())
        for name, tensor in checkpoint.tensors.items()
        if name.startswith(LANGUAGE)
    }
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    return model


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return tmp_path / "llava-qwen-lora"


@pytest.fixture
def train(checkpoint: Path, adapter: Path) -> Train:
    """Write a random adapter with peft, and return the weights that peft merges."""

    def write(*, pickled: bool = False, **options: object) -> Merged:
        torch.manual_seed(3)
        config = peft.LoraConfig(
            **{"r": 4, "lora_alpha": 16, "target_modules": LINEAR, "task_type": "CAUSAL_LM"}
            | options
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft warns of what it does with tied embeddings
            model = peft.get_peft_model(language_model(checkpoint), config)
            for name, parameter in model.named_parameters():
                if "lora_" in name or "modules_to_save" in name:
                    torch.nn.init.normal_(parameter, std=0.1)
            model.save_pretrained(adapter, safe_serialization=not pickled)
            merged = model.merge_and_unload().state_dict()
        if pickled and not (adapter / "adapter_model.bin").is_file():
            tensors = load_file(adapter / "adapter_model.safetensors")
            torch.save(
                {k: torch.from_numpy(v) for k, v in tensors.items()}, adapter / "adapter_model.bin"
            )
            (adapter / "adapter_model.safetensors").unlink()
        return {name: tensor.numpy() for name, tensor in merged.items()}

    return write


def assert_equals_peft(adapter: Path, base: Path, merged: Merged) -> None:
    ours = open_checkpoint(adapter, base=base)
    before = open_checkpoint(base)
    changed = 0
    for name, tensor in ours.tensors.items():
        if name.startswith(LANGUAGE):
            found, expected = tensor.read(), merged[name]
            assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected), name
            pieces = np.concatenate(list(tensor.chunks())) if tensor.shape else found
            np.testing.assert_allclose(pieces, found, atol=1e-6)
            changed += not np.array_equal(found, before.tensors[name].read())
    assert changed > 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"layers.1.self_attn.q_proj": 5}},
        {"pickled": True},
    ],
    ids=["plain", "rank-stabilised", "embeddings", "patterns", "pickled"],
)
def test_an_adapter_merges_as_peft_merges_it(
    adapter: Path, checkpoint: Path, train: Train, options: dict
) -> None:
    assert_equals_peft(adapter, checkpoint, train(**options))


def test_a_module_that_was_trained_whole_replaces_the_base_s(
    adapter: Path, checkpoint: Path, train: Train
) -> None:
    assert_equals_peft(adapter, checkpoint, train(modules_to_save=["norm"]))


def test_llava_s_trainables_replace_projector_and_vision_weights(
    adapter: Path, checkpoint: Path, train: Train
) -> None:
    train()
    name = "model.mm_projector.0.bias"
    values = torch.full((96,), 0.25, dtype=torch.bfloat16)
    torch.save({f"base_model.model.{name}": values}, adapter / "non_lora_trainables.bin")
    opened = open_checkpoint(adapter, base=checkpoint)
    np.testing.assert_array_equal(opened.tensors[name].read(), np.full(96, 0.25, np.float32))


def test_a_merged_adapter_answers(
    adapter: Path, checkpoint: Path, train: Train, picture: Path
) -> None:
    train()
    package = adapter.parent / "tuned-onnx"
    manifest = export_package(adapter, package, base=checkpoint)
    assert manifest.source.name == adapter.name
    assert fastvlm_onnx.load(package).generate(picture, "Hi", max_new_tokens=2).token_ids


# --- refusals ------------------------------------------------------------------------------------


def refusal(
    adapter: Path, base: Path | None, error: type[CheckpointError] = CheckpointError
) -> str:
    destination = adapter.parent / "refused-onnx"
    with pytest.raises(error) as caught:
        export_package(adapter, destination, base=base)
    assert not destination.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_adapter_without_a_base_names_the_base(
    adapter: Path, train: Train, edit_json: Callable
) -> None:
    train()
    edit_json(
        adapter / "adapter_config.json",
        lambda c: c.update(base_model_name_or_path="llava-fastvithd_0.5b_stage3"),
    )
    line = refusal(adapter, None)
    assert "llava-fastvithd_0.5b_stage3" in line
    assert "--base" in line


def test_a_base_for_a_whole_model_is_refused(checkpoint: Path) -> None:
    assert "leave the base out" in refusal(checkpoint, checkpoint)


def test_an_adapter_of_another_base_is_refused(adapter: Path, train: Train) -> None:
    train()
    line = refusal(adapter, Path("demo"))
    assert "q_proj" in line or "mlp" in line
    assert "give the base that the adapter was trained on" in line


def test_an_adapter_of_a_deeper_base_is_refused(
    adapter: Path, checkpoint: Path, train: Train
) -> None:
    train()
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({k.replace("layers.2.", "layers.7."): v for k, v in tensors.items()}, path)
    assert "layers.7." in refusal(adapter, checkpoint)


@pytest.mark.parametrize(
    ("field", "value"), [("use_dora", True), ("peft_type", "IA3"), ("bias", "all")]
)
def test_another_kind_of_adapter_is_named(
    adapter: Path, checkpoint: Path, train: Train, edit_json: Callable, field: str, value: object
) -> None:
    train()
    edit_json(adapter / "adapter_config.json", lambda c: c.update({field: value}))
    assert f"{field} is {value!r}" in refusal(adapter, checkpoint, UnsupportedError)


def test_an_adapter_with_half_a_pair_is_refused(
    adapter: Path, checkpoint: Path, train: Train
) -> None:
    train()
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors.pop(next(name for name in tensors if "lora_B" in name))
    save_file(tensors, path)
    assert "found lora_A" in refusal(adapter, checkpoint)


def test_an_adapter_without_weights_is_refused(
    adapter: Path, checkpoint: Path, train: Train
) -> None:
    train()
    (adapter / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors" in refusal(adapter, checkpoint)


def test_an_alpha_that_is_not_a_number_is_refused(
    adapter: Path, checkpoint: Path, train: Train
) -> None:
    train()
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": "big"}))
    assert "lora_alpha is 'big'" in refusal(adapter, checkpoint)
