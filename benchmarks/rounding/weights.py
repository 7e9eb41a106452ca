"""The decoder's weights in one compact file: the quantised tensors of a GGUF file, as they are.

Dequantised and rounded to bfloat16, they are the values of the checkpoint that was made of the
same file.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rounding.decoder import Decoder, Sizes
from torch import Tensor

LAYER_NAMES = {
    "attn_norm.weight": "input_norm",
    "ffn_norm.weight": "post_norm",
    "attn_q.weight": "q",
    "attn_k.weight": "k",
    "attn_v.weight": "v",
    "attn_output.weight": "o",
    "attn_q.bias": "q_bias",
    "attn_k.bias": "k_bias",
    "attn_v.bias": "v_bias",
    "ffn_gate.weight": "gate",
    "ffn_up.weight": "up",
    "ffn_down.weight": "down",
}
CHECKPOINT_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    **{
        f"attn_{c}.{kind}": f"self_attn.{c}_proj.{kind}"
        for c in "qkv"
        for kind in ("weight", "bias")
    },
    **{f"ffn_{name}.weight": f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")},
}


def pack(gguf_file: Path, out: Path) -> None:
    """Write the tensors that the decoder needs, with a JSON index beside them."""
    from gguf import GGUFReader

    index, offset = [], 0
    with out.open("wb") as file:
        for tensor in GGUFReader(gguf_file).tensors:
            if tensor.name == "token_embd.weight":
                # output.weight is the better copy of the same matrix.
                continue
            data = np.ascontiguousarray(tensor.data)
            kind = int(tensor.tensor_type)
            entry = [tensor.name, kind, list(data.shape), str(data.dtype), offset, data.nbytes]
            index.append(entry)
            file.write(data.tobytes())
            offset += data.nbytes
    out.with_suffix(".json").write_text(json.dumps(index))


def unpack(packed: Path, device: str) -> Decoder:
    """Read the file of `pack`."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    data = np.memmap(packed, np.uint8, "r")
    tensors = {}
    for name, kind, shape, dtype, offset, size in json.loads(
        packed.with_suffix(".json").read_text()
    ):
        raw = np.frombuffer(data[offset : offset + size].tobytes(), dtype).reshape(shape)
        tensors[name] = (raw, GGMLQuantizationType(kind))

    def read(name: str) -> Tensor:
        values = np.array(dequantize(*tensors[name]), np.float32)
        return torch.from_numpy(values).to(device).to(torch.bfloat16).float()

    count = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blk."))
    return _decoder(read, count, LAYER_NAMES, "blk.{}.{}", "output_norm.weight", "output.weight")


def read_checkpoint(folder: Path, device: str, layers: int = 24) -> Decoder:
    """Read a checkpoint's safetensors file."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:

        def read(name: str) -> Tensor:
            return file.get_tensor(name).to(device).float()

        names = {CHECKPOINT_NAMES[name]: own for name, own in LAYER_NAMES.items()}
        embed = "model.embed_tokens.weight"
        return _decoder(read, layers, names, "model.layers.{}.{}", "model.norm.weight", embed)


def _decoder(
    read: Callable[[str], Tensor], count: int, names: dict[str, str], form: str, *ends: str
) -> Decoder:
    layers: list[dict[str, Any]] = [
        {own: read(form.format(i, name)) for name, own in names.items()} for i in range(count)
    ]
    norm, embed = (read(name) for name in ends)
    return Decoder(embed, layers, norm, embed)


def random_decoder(layers: int = 2, seed: int = 0) -> Decoder:
    """Make a small decoder of random weights, for a check of the program."""
    generator = torch.Generator().manual_seed(seed)
    sizes = Sizes(heads=4, kv_heads=2, head_dim=32)
    hidden, inner, vocab = 128, 512, 300

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

    def layer() -> dict[str, Tensor]:
        kv = sizes.kv_heads * sizes.head_dim
        shapes = {
            "q": (hidden, hidden),
            "k": (kv, hidden),
            "v": (kv, hidden),
            "o": (hidden, hidden),
            "gate": (inner, hidden),
            "up": (inner, hidden),
            "down": (hidden, inner),
        }
        biases = {f"{c}_bias": draw(shapes[c][0]) for c in "qkv"}
        norms = {name: 1 + draw(hidden) for name in ("input_norm", "post_norm")}
        return {name: draw(*shape) for name, shape in shapes.items()} | biases | norms

    embed = draw(vocab, hidden) * 3
    return Decoder(embed, [layer() for _ in range(layers)], torch.ones(hidden), embed, sizes)
