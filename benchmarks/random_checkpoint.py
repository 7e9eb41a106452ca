"""Random FastVLM checkpoints at true size, stored as Apple stores them.

    python benchmarks/random_checkpoint.py 0.5b /tmp/random-0.5b

Speed, memory and parity with PyTorch depend on shapes and on sane scales, not on what the weights
mean. Layers keep the scale of what they are given, and residual branches are small, so activations
stay finite through any depth. No torch.
"""

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

HERE = Path(__file__).resolve().parent
DEMO_CHECKPOINT = HERE.parent / "fastvlm_onnx/demo/checkpoint"
VISION_PREFIX = "model.vision_tower.vision_tower.model."

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LanguageSize:
    """Qwen2's sizes, under the field names of config.json; `tokens` is `len(tokenizer)`."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tokens: int
    is_tied: bool


PUBLISHED = {
    "0.5b": LanguageSize(896, 4864, 24, 14, 2, 151_936, 151_646, is_tied=True),
    "1.5b": LanguageSize(1536, 8960, 28, 12, 2, 151_936, 151_646, is_tied=True),
    "7b": LanguageSize(3584, 18_944, 28, 28, 4, 152_064, 151_646, is_tied=False),
}


def fastvithd_tensors() -> dict[str, Shape]:
    """The published vision encoder's 629 tensors: name, relative to VISION_PREFIX, and shape."""
    names = json.loads((HERE / "fastvithd_tensors.json").read_text("utf-8"))
    return {name: tuple(shape) for name, shape in names}


def write_random_checkpoint(
    folder: Path,
    language: LanguageSize,
    *,
    vision: Mapping[str, Shape] | None = None,
    image_size: int = 1024,
    seed: int = 0,
    shard_bytes: int = 2_000_000_000,
    config: Mapping[str, Any] | None = None,
    outlier_tokens: Sequence[int] = (),
) -> None:
    """Write config.json, bf16 safetensors (sharded when larger than a shard) and tokenizer files.

    Args:
        vision: the vision encoder's tensors; the published ones when None.
        config: fields that replace, or come on top of, those of config.json.
        outlier_tokens: ids of tokens with activations a thousand times those of others, as Qwen2
            has a few.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vision = fastvithd_tensors() if vision is None else vision
    rng = np.random.default_rng(seed)
    special = _write_tokenizer(folder, language.tokens)
    shapes = {VISION_PREFIX + name: shape for name, shape in vision.items()}
    shapes |= _projector_tensors(vision["conv_exp.reparam_conv.bias"][0], language.hidden_size)
    shapes |= _language_tensors(language)
    outliers = Outliers(language, outlier_tokens)
    _write_shards(folder, shapes, rng, shard_bytes, outliers)
    fields = {
        "architectures": ["LlavaQwen2ForCausalLM"],
        "model_type": "llava_qwen2",
        "hidden_act": "silu",
        "hidden_size": language.hidden_size,
        "intermediate_size": language.intermediate_size,
        "num_hidden_layers": language.num_hidden_layers,
        "num_attention_heads": language.num_attention_heads,
        "num_key_value_heads": language.num_key_value_heads,
        "vocab_size": language.vocab_size,
        "tie_word_embeddings": language.is_tied,
        "max_position_embeddings": 32_768,
        "tokenizer_model_max_length": 8192,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "eos_token_id": special["<|im_end|>"],
        "bos_token_id": special["<|endoftext|>"],
        "mm_hidden_size": vision["conv_exp.reparam_conv.bias"][0],
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_tower": f"mobileclip_l_{image_size}",
        "mm_patch_merge_type": "flat",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad",
        "use_sliding_window": False,
        "torch_dtype": "bfloat16",
    }
    fields |= dict(config or {})
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n")


def _projector_tensors(vision_size: int, hidden_size: int) -> dict[str, Shape]:
    return {
        "model.mm_projector.0.weight": (hidden_size, vision_size),
        "model.mm_projector.0.bias": (hidden_size,),
        "model.mm_projector.2.weight": (hidden_size, hidden_size),
        "model.mm_projector.2.bias": (hidden_size,),
    }


def _language_tensors(size: LanguageSize) -> dict[str, Shape]:
    width, wide = size.hidden_size, size.intermediate_size
    kv_width = width // size.num_attention_heads * size.num_key_value_heads
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (size.vocab_size, width)}
    for i in range(size.num_hidden_layers):
        layer = f"model.layers.{i}."
        for name, rows in (("q_proj", width), ("k_proj", kv_width), ("v_proj", kv_width)):
            shapes[f"{layer}self_attn.{name}.weight"] = (rows, width)
            shapes[f"{layer}self_attn.{name}.bias"] = (rows,)
        shapes |= {
            f"{layer}self_attn.o_proj.weight": (width, width),
            f"{layer}mlp.gate_proj.weight": (wide, width),
            f"{layer}mlp.up_proj.weight": (wide, width),
            f"{layer}mlp.down_proj.weight": (width, wide),
            f"{layer}input_layernorm.weight": (width,),
            f"{layer}post_attention_layernorm.weight": (width,),
        }
    shapes["model.norm.weight"] = (width,)
    if not size.is_tied:
        shapes["lm_head.weight"] = (size.vocab_size, width)
    return shapes


def _draw(name: str, shape: Shape, rng: np.random.Generator) -> NDArray[Any]:
    """Values under which a layer's output is about as large as its input."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if "layer_scale" in name:
        return rng.uniform(0.05, 0.2, shape)
    if name.endswith("running_var"):
        return rng.uniform(0.5, 1.5, shape)
    if name.endswith((".bn.weight", "norm.weight", "layernorm.weight")):
        return rng.uniform(0.8, 1.2, shape)
    noise = rng.standard_normal(shape, np.float32)
    if len(shape) == 1:  # biases, running means
        return noise * np.float32(0.05)
    # embed_tokens and lm_head: rows of length 1, so random logits stay within a few units.
    fan_in = shape[-1] if len(shape) == 2 else int(np.prod(shape[1:]))
    # A residual folded into a depthwise convolution (RepMixer, RepCPE): identity plus little.
    if (len(shape) == 4 and "token_mixer.reparam_conv" in name) or _is_position_encoding(name):
        noise *= np.float32(0.1 / fan_in**0.5)
        middle = shape[-1] // 2
        noise[:, 0, middle, middle] += 1
        return noise
    gain = 2.0 if len(shape) == 4 else 1.0  # GELU halves what a convolution gives
    noise *= np.float32((gain / fan_in) ** 0.5)
    return noise


def _is_position_encoding(name: str) -> bool:
    return name.endswith(("network.6.reparam_conv.weight", "network.9.reparam_conv.weight"))


class Outliers:
    """Tokens whose embedding is a thousand times as long as others', and units that answer to them.

    In each planted layer one unit of the MLP has gate and up rows along such a token's direction:
    for that token it reaches about a thousand times what units reach for others.
    """

    def __init__(self, language: LanguageSize, tokens: Sequence[int]) -> None:
        rng = np.random.default_rng(7)
        self._directions = {}
        for token in tokens:
            direction = rng.standard_normal(language.hidden_size)
            self._directions[token] = direction / np.linalg.norm(direction)
        self._layers = {1, language.num_hidden_layers // 2}
        # Through the norm a token arrives with length sqrt(hidden_size); gate times up gives 900.
        self._gain = 30 / language.hidden_size**0.5

    def plant(self, name: str, array: NDArray[Any]) -> None:
        """Change a drawn tensor in place."""
        if name == "model.embed_tokens.weight":
            for token, direction in self._directions.items():
                array[token] = 1000 * direction
        match = re.fullmatch(r"model\.layers\.(\d+)\.mlp\.(gate|up)_proj\.weight", name)
        if match and int(match[1]) in self._layers:
            for unit, direction in enumerate(self._directions.values()):
                array[unit] = self._gain * direction


def _write_shards(
    folder: Path,
    shapes: Mapping[str, Shape],
    rng: np.random.Generator,
    shard_bytes: int,
    outliers: Outliers,
) -> None:
    shards = list(_split(shapes, shard_bytes))
    names = ["model.safetensors"]
    if len(shards) > 1:
        count = f"{len(shards):05d}"
        names = [f"model-{i:05d}-of-{count}.safetensors" for i in range(1, len(shards) + 1)]
    for file_name, shard in zip(names, shards, strict=True):
        tensors = {}
        for name, shape in shard.items():
            array = _draw(name, shape, rng)
            outliers.plant(name, array)
            is_counter = array.dtype == np.int64
            tensors[name] = array if is_counter else array.astype(ml_dtypes.bfloat16)
        save_file(tensors, folder / file_name, metadata={"format": "pt"})
    if len(shards) > 1:
        weight_map = {
            name: file for file, shard in zip(names, shards, strict=True) for name in shard
        }
        index = {
            "metadata": {"total_size": sum(map(_size_bytes, shapes.values()))},
            "weight_map": weight_map,
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _split(shapes: Mapping[str, Shape], shard_bytes: int) -> Iterator[dict[str, Shape]]:
    shard: dict[str, Shape] = {}
    for name, shape in shapes.items():
        if shard and sum(map(_size_bytes, (*shard.values(), shape))) > shard_bytes:
            yield shard
            shard = {}
        shard[name] = shape
    yield shard


def _size_bytes(shape: Shape) -> int:
    return 2 * int(np.prod(shape, dtype=np.int64))


def _write_tokenizer(folder: Path, tokens: int) -> dict[str, int]:
    """The built-in model's tokenizer, filled up to `tokens` with words that no merge makes."""
    vocab = json.loads((DEMO_CHECKPOINT / "vocab.json").read_text("utf-8"))
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    for i in range(len(vocab), tokens - len(special)):
        vocab[f"Ġfiller{i}"] = i
    added = {token: len(vocab) + i for i, token in enumerate(special)}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "added_tokens.json").write_text(json.dumps(added, indent=2) + "\n")
    (folder / "merges.txt").write_bytes((DEMO_CHECKPOINT / "merges.txt").read_bytes())
    return added


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", choices=PUBLISHED)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--outliers", type=int, default=0, help="tokens with huge activations")
    args = parser.parse_args()
    tokens = range(1000, 1000 + args.outliers)
    language = PUBLISHED[args.size]
    write_random_checkpoint(args.folder, language, seed=args.seed, outlier_tokens=tokens)


if __name__ == "__main__":
    main()
