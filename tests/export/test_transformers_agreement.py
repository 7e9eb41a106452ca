"""The PyTorch reference against an implementation that is not ours: transformers' FastVLM.

Its vision tower is timm's fastvit_mci3. timm and torchvision (whose wheels are built for CUDA) are
installed without dependencies into a folder of their own, and run in a process of their own.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from native_checkpoint import write_native_checkpoint
from random_checkpoint import LanguageSize, fastvithd_tensors, write_random_checkpoint

from fastvlm_onnx.export.checkpoint import open_checkpoint
from fastvlm_onnx.export.reference import ReferenceFastVLM

pytestmark = pytest.mark.slow
PACKAGES = ("timm==1.0.31", "torchvision==0.29.2", "pyyaml")
# Two implementations in float32 whose sums run in another order.
TOLERANCE = 1e-5
TOKENS, STEPS = 429, 16
BEFORE, AFTER = [425, 17, 80, 33], [33, 254, 100, 7, 428]


@pytest.fixture(scope="module")
def timm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("timm")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*install, "--target", str(folder), *PACKAGES], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"timm cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    return folder


@dataclass(frozen=True)
class Pair:
    ours: ReferenceFastVLM
    pixel_values: torch.Tensor
    theirs: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def pair(timm: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The full-size FastViTHD and a small Qwen2, each side reading its own layout."""
    folder = tmp_path_factory.mktemp("agreement")
    language = LanguageSize(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=512,
        tokens=TOKENS,
        is_tied=False,
    )
    write_random_checkpoint(folder / "apple", language, vision=fastvithd_tensors())
    write_native_checkpoint(folder / "apple", folder / "native")
    checkpoint = open_checkpoint(folder / "apple")
    ours = ReferenceFastVLM(checkpoint.config)
    ours.load_checkpoint({k: torch.from_numpy(t.read()) for k, t in checkpoint.tensors.items()})
    pixel_values = np.random.default_rng(5).random((1, 3, 1024, 1024), np.float32)
    # The image token's id is the first behind the tokenizer's.
    input_ids = np.array([BEFORE + [TOKENS] * 256 + AFTER])
    inputs = {"pixel_values": pixel_values, "input_ids": input_ids}
    np.savez(folder / "inputs.npz", tokens=TOKENS, steps=STEPS, **inputs)
    script = Path(__file__).with_name("transformers_side.py")
    files = [folder / "native", folder / "inputs.npz", folder / "outputs.npz"]
    done = subprocess.run(
        [sys.executable, script, *files],
        env=os.environ | {"PYTHONPATH": str(timm), "TIMM_FUSED_ATTN": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = {k: torch.from_numpy(v) for k, v in np.load(folder / "outputs.npz").items()}
    return Pair(ours, torch.from_numpy(pixel_values), theirs)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def inputs_embeds(pair: Pair) -> torch.Tensor:
    before, after = (pair.ours.embed_tokens(torch.tensor([ids])) for ids in (BEFORE, AFTER))
    return torch.cat([before, pair.ours.encode_image(pair.pixel_values), after], dim=1)


@torch.inference_mode()
def test_the_vision_encoders_agree(pair: Pair) -> None:
    expected = pair.theirs["image_hidden_states"]
    assert expected.shape == (1, 256, 3072)
    assert relative_error(pair.ours.vision_encoder(pair.pixel_values), expected) < TOLERANCE


@torch.inference_mode()
def test_the_logits_of_every_position_agree(pair: Pair) -> None:
    assert relative_error(pair.ours.logits(inputs_embeds(pair)), pair.theirs["logits"]) < TOLERANCE


@torch.inference_mode()
def test_greedy_tokens_agree(pair: Pair) -> None:
    answer = pair.ours.generate_greedy(inputs_embeds(pair), STEPS)
    assert answer == pair.theirs["answer"].tolist()
