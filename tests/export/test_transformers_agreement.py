"""The PyTorch reference against an implementation that is not ours: transformers' FastVLM.

Its vision tower is timm's fastvit_mci3. Its language model is the Qwen2 that the reference uses
too: what the logits hold are the names, the splicing of the picture's rows, and the KV cache. timm
and torchvision (whose wheels are built for CUDA) are installed without dependencies into a folder
of their own, and run in a process of their own.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from native_checkpoint import write_native_checkpoint
from random_checkpoint import LanguageSize, write_random_checkpoint
from safetensors.torch import load_file, save_file

from fastvlm_onnx.export.sources.open_checkpoint import open_checkpoint
from fastvlm_onnx.export.verification.reference_model import ReferenceFastVLM

pytestmark = pytest.mark.slow
PACKAGES = ("timm==1.0.31", "torchvision==0.29.*", "pyyaml")
# Two implementations in float32. One alone, with another number of threads, moves by 1.4e-6.
TOLERANCE = 1e-5
STEPS = 16
# transformers notes these in tokenizer_config.json when it saves a tokenizer it has loaded.
HOW_IT_WAS_LOADED = ("is_local", "local_files_only")
BEFORE, AFTER = [737, 17, 80, 33], [33, 254, 100, 7, 738]


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
    smaller_pixel_values: torch.Tensor
    faint: torch.Tensor
    theirs: dict[str, torch.Tensor]
    written: Path
    saved: Path


@pytest.fixture(scope="module", params=[False, True], ids=["lm_head", "tied"])
def pair(
    request: pytest.FixtureRequest,
    timm: Path,
    tmp_path_factory: pytest.TempPathFactory,
    small_language: LanguageSize,
) -> Pair:
    """The full-size FastViTHD and a small Qwen2, each side reading its own layout."""
    folder = tmp_path_factory.mktemp("agreement")
    language = replace(small_language, is_tied=request.param)
    write_random_checkpoint(folder / "apple", language)
    let_answers_differ(folder / "apple/model.safetensors")
    write_native_checkpoint(folder / "apple", folder / "native")
    checkpoint = open_checkpoint(folder / "apple")
    ours = ReferenceFastVLM(checkpoint.config)
    ours.load_checkpoint({k: torch.from_numpy(t.read()) for k, t in checkpoint.tensors.items()})
    rng = np.random.default_rng(5)
    pixel_values, smaller = (rng.random((1, 3, s, s), np.float32) for s in (1024, 512))
    faint = 0.01 * rng.random((1, 768, 4, 4), np.float32)
    np.savez(
        folder / "inputs.npz",
        pixel_values=pixel_values,
        smaller_pixel_values=smaller,
        faint=faint,
        # The image token's id is the first behind the tokenizer's.
        input_ids=np.array([BEFORE + [language.tokens] * 256 + AFTER]),
        tokens=language.tokens,
        steps=STEPS,
    )
    script = Path(__file__).with_name("transformers_side.py")
    done = subprocess.run(
        [sys.executable, script, folder / "native", folder / "inputs.npz", folder],
        env=os.environ | {"PYTHONPATH": str(timm), "TIMM_FUSED_ATTN": "0", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return Pair(
        ours=ours,
        pixel_values=torch.from_numpy(pixel_values),
        smaller_pixel_values=torch.from_numpy(smaller),
        faint=torch.from_numpy(faint),
        theirs={k: torch.from_numpy(v) for k, v in np.load(folder / "outputs.npz").items()},
        written=folder / "native",
        saved=folder / "saved",
    )


def let_answers_differ(path: Path) -> None:
    """Make answers hang on the picture: at random, all rows count alike and one token repeats.

    A tied lm_head repeats a token where the token's own embedding outweighs what the layers add.
    """
    factors = {"q_proj": 4, "down_proj": 3}
    tensors = load_file(path)
    for name in tensors:
        for part, factor in factors.items():
            if part in name:
                tensors[name] = factor * tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
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
def test_timm_alone_agrees_at_another_image_size(pair: Pair) -> None:
    expected = pair.theirs["smaller_image_hidden_states"]
    assert expected.shape == (1, 64, 3072)
    found = pair.ours.vision_encoder(pair.smaller_pixel_values)
    assert relative_error(found, expected) < TOLERANCE


@torch.inference_mode()
def test_the_channel_norms_agree_where_eps_counts(pair: Pair) -> None:
    # The variance is below eps here; in whole features another eps would pass for rounding.
    found = pair.ours.vision_encoder.network[7][0].norm(pair.faint)
    assert relative_error(found, pair.theirs["normalised_faint"]) < TOLERANCE


@torch.inference_mode()
def test_the_projectors_agree(pair: Pair) -> None:
    # Given the same features, so that only the projectors can differ.
    found = pair.ours.projector(pair.theirs["image_hidden_states"])
    assert relative_error(found, pair.theirs["image_features"]) < TOLERANCE


@torch.inference_mode()
def test_the_logits_of_every_position_agree(pair: Pair) -> None:
    assert relative_error(pair.ours.logits(inputs_embeds(pair)), pair.theirs["logits"]) < TOLERANCE


@torch.inference_mode()
def test_greedy_tokens_agree(pair: Pair) -> None:
    answer = pair.ours.generate_greedy(inputs_embeds(pair), STEPS)
    assert answer == pair.theirs["answer"].tolist()
    assert len(set(answer)) > STEPS // 2


def test_the_native_layout_is_what_transformers_saves(pair: Pair) -> None:
    names = {path.name for path in pair.written.iterdir()}
    assert names == {path.name for path in pair.saved.iterdir()}
    for name in names - {"model.safetensors", "chat_template.jinja"}:
        written, saved = (
            json.loads((folder / name).read_text("utf-8")) for folder in (pair.written, pair.saved)
        )
        for field in HOW_IT_WAS_LOADED:
            saved.pop(field, None)
        assert written == saved, name
    written, saved = (load_file(f / "model.safetensors") for f in (pair.written, pair.saved))
    assert written.keys() == saved.keys()
    for name, tensor in saved.items():
        torch.testing.assert_close(written[name], tensor, rtol=0, atol=0, msg=name)
