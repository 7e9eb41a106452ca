"""Sources and file formats of checkpoints: all of them give the same model."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from hub import serve_bytes, serve_hub
from safetensors.numpy import load_file

from fastvlm_onnx import CheckpointError
from fastvlm_onnx.export.checkpoint.reader import Checkpoint
from fastvlm_onnx.export.pipeline import export_package
from fastvlm_onnx.export.sources.open_checkpoint import open_checkpoint

Refusal = Callable[[Path], str]


@pytest.fixture
def refusal() -> Refusal:
    def refuse(checkpoint: Path) -> str:
        destination = checkpoint.parent / "refused-onnx"
        with pytest.raises(CheckpointError) as caught:
            export_package(checkpoint, destination)
        assert not destination.exists()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return refuse


def assert_same(found: Checkpoint, expected: Checkpoint) -> None:
    assert found.config == expected.config
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        np.testing.assert_array_equal(found.tensors[name].read(), tensor.read(), err_msg=name)
        if tensor.shape:
            pieces = np.concatenate(list(found.tensors[name].chunks()))
            np.testing.assert_array_equal(pieces, tensor.read(), err_msg=name)


def to_torch(array: np.ndarray) -> torch.Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


# --- PyTorch's files -----------------------------------------------------------------------------


@pytest.fixture
def pickled(checkpoint: Path) -> Path:
    """The checkpoint with its weights in pytorch_model.bin alone."""
    folder = checkpoint.with_name("pickled")
    folder.mkdir()
    for file in checkpoint.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    tensors = {k: to_torch(v) for k, v in load_file(checkpoint / "model.safetensors").items()}
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder


def test_pytorch_s_file_holds_the_same_model(pickled: Path, checkpoint: Path) -> None:
    assert_same(open_checkpoint(pickled), open_checkpoint(checkpoint))


def test_pytorch_s_oldest_format_is_read_too(pickled: Path, checkpoint: Path) -> None:
    path = pickled / "pytorch_model.bin"
    torch.save(torch.load(path), path, _use_new_zipfile_serialization=False)
    assert_same(open_checkpoint(pickled), open_checkpoint(checkpoint))


def test_pytorch_s_shards_hold_the_same_model(pickled: Path, checkpoint: Path) -> None:
    tensors = torch.load(pickled / "pytorch_model.bin")
    (pickled / "pytorch_model.bin").unlink()
    names = list(tensors)
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"pytorch_model-{i:05d}-of-00002.bin"
        torch.save({name: tensors[name] for name in part}, pickled / shard)
        weight_map |= dict.fromkeys(part, shard)
    index = {"metadata": {}, "weight_map": weight_map}
    (pickled / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert_same(open_checkpoint(pickled), open_checkpoint(checkpoint))


class Attack:
    """An object whose unpickling makes a folder."""

    def __reduce__(self) -> tuple:
        return os.mkdir, (os.environ["ATTACK_FOLDER"],)


def test_a_pickle_that_runs_code_is_refused_unrun(
    pickled: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ATTACK_FOLDER", str(tmp_path / "attacked"))
    torch.save({"model.norm.weight": Attack()}, pickled / "pytorch_model.bin")
    assert "not a file of PyTorch tensors" in refusal(pickled)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [([torch.ones(2)], "holds a list"), ({"epoch": 3}, "epoch is a int")],
    ids=["list", "training state"],
)
def test_a_pickle_without_tensors_is_refused(
    pickled: Path, refusal: Refusal, content: object, words: str
) -> None:
    torch.save(content, pickled / "pytorch_model.bin")
    assert words in refusal(pickled)


def test_a_cut_pickle_is_refused(pickled: Path, refusal: Refusal) -> None:
    path = pickled / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-5000])
    assert f"{path}: not a file of PyTorch tensors" in refusal(pickled)


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinite_weights_are_refused_by_name(
    checkpoint: Path, edit_tensors: Callable, refusal: Refusal, value: float
) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    edit_tensors(lambda t: t[name].__setitem__((3, 5), value))
    line = refusal(checkpoint)
    assert f"{name} holds 1 values" in line
    assert "--allow-nonfinite" in line
    export_package(checkpoint, checkpoint.parent / "allowed-onnx", allow_nonfinite=True)


def test_weights_whose_sum_overflows_are_accepted(checkpoint: Path, edit_tensors: Callable) -> None:
    # The sum is beyond the range of float32, and no value is.
    edit_tensors(lambda t: t["model.norm.weight"].fill(3e38))
    assert np.isfinite(open_checkpoint(checkpoint).tensors["model.norm.weight"].read()).all()


def test_a_head_that_equals_the_embeddings_is_stored_once(
    checkpoint: Path, edit_tensors: Callable, edit_json: Callable
) -> None:
    edit_json(checkpoint / "config.json", lambda c: c.update(tie_word_embeddings=False))
    edit_tensors(lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    opened = open_checkpoint(checkpoint)
    assert opened.config.decoder.is_tied
    assert "lm_head.weight" not in opened.tensors
    export_package(checkpoint, checkpoint.parent / "tied-onnx")


# --- headers that do not fit the file ------------------------------------------------------------


@pytest.mark.parametrize("length", [2**63 - 1, 10**9, 3], ids=["huge", "too long", "too short"])
def test_a_safetensors_header_of_a_wrong_length_is_refused(
    checkpoint: Path, refusal: Refusal, length: int
) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    assert "not a whole safetensors file" in refusal(checkpoint)


@pytest.mark.parametrize("offsets", [[0, 10**12], [8, 0], [-8, 0]])
def test_a_safetensors_header_with_false_offsets_is_refused(
    checkpoint: Path, refusal: Refusal, offsets: list[int]
) -> None:
    header = {"a": {"dtype": "F32", "shape": [2], "data_offsets": offsets}}
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + bytes(8)
    (checkpoint / "model.safetensors").write_bytes(content)
    assert "not a whole safetensors file" in refusal(checkpoint)


# --- a Hugging Face id ---------------------------------------------------------------------------


def export(source: str, destination: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Export in another process, since huggingface_hub reads its settings when it is imported."""
    command = [sys.executable, "-m", "fastvlm_onnx", "export", source, "-o", str(destination)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | environment
    )


def test_a_hub_id_is_downloaded_once_and_then_needs_no_network(
    tmp_path: Path, demo_checkpoint: Path
) -> None:
    cache = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    with serve_hub("apple/FastVLM-tiny", demo_checkpoint) as address:
        online = export("apple/FastVLM-tiny", tmp_path / "a", HF_ENDPOINT=address, **cache)
        assert online.returncode == 0, online.stderr
        absent = export("apple/FastVLM-none", tmp_path / "b", HF_ENDPOINT=address, **cache)
    assert absent.returncode == 2
    assert "no such repository" in absent.stderr
    assert len(absent.stderr.splitlines()) == 1
    offline = export("apple/FastVLM-tiny", tmp_path / "c", HF_HUB_OFFLINE="1", **cache)
    assert offline.returncode == 0, offline.stderr
    manifest = json.loads((tmp_path / "c/fastvlm.json").read_text())
    assert manifest["source"]["name"] == "apple/FastVLM-tiny"
    weights = "decoder.fp32.onnx.data"
    assert (tmp_path / "a" / weights).read_bytes() == (tmp_path / "c" / weights).read_bytes()
    absent = export("apple/FastVLM-none", tmp_path / "d", HF_HUB_OFFLINE="1", **cache)
    assert absent.returncode == 2
    assert "not in the cache" in absent.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "a", "c"}


def test_a_failing_hub_is_reported_in_one_line(tmp_path: Path, demo_checkpoint: Path) -> None:
    with serve_hub("apple/FastVLM-tiny", demo_checkpoint, status=403) as address:
        done = export(
            "apple/FastVLM-tiny", tmp_path / "a", HF_ENDPOINT=address, HF_HOME=str(tmp_path / "c")
        )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "cannot be downloaded from Hugging Face" in done.stderr


def test_json_that_is_no_hubs_is_reported_in_one_line(tmp_path: Path) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    with serve_bytes(answer) as address:
        environment = {"HF_ENDPOINT": f"http://{address}", "HF_HOME": str(tmp_path / "c")}
        done = export("apple/FastVLM-tiny", tmp_path / "a", **environment)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "the hub's answer is not a hub's; check the address in $HF_ENDPOINT" in line


def test_a_path_that_looks_like_a_hub_id_is_not_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder or zip"):
        open_checkpoint("checkpoints/llava-fastvithd_0.5b_stage3")
