"""Manifest format 1, which fastvlm-onnx 0.1 wrote: converted once, while it is read.

Format 1 states several facts only in the names of files and in the text of the prompt. No other
module takes names or texts apart. Standard library only.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from fastvlm_onnx.errors import PackageError
from fastvlm_onnx.manifest_reader import parse
from fastvlm_onnx.names import scale_file
from fastvlm_onnx.variants import VARIANTS

# This token begins a turn in Qwen2's prompts, the only prompts with turns in format 1.
TURN: Final = "<|im_start|>"
# By the graph precision in a decoder's file name.
CACHE_DTYPES: Final = {"fp16": "float16", "int4_cuda": "float16", "bf16": "bfloat16"}
# Every graph of format 1 but the decoders of `--operators standard`, which are refused.
OPSETS: Final = {"ai.onnx": 21}
# Graphs of format 1 have MatMulNBits with 8 bits, and no attention with a sink.
LEAST_ONNXRUNTIME_8_BITS: Final = "1.22"


@dataclass(frozen=True)
class Format1Prompt:
    before_image: str
    before_prompt: str
    after_prompt: str


@dataclass(frozen=True)
class Format1Variant:
    vision_encoder: dict[str, str]
    projector: str
    prefill: str
    decoder: str
    embed_tokens: str


@dataclass(frozen=True)
class Format1Manifest:
    """The keys of format 1; those of type Any are the same in format 2."""

    format_version: int
    source: Any
    image: Any
    prompt: Format1Prompt
    decoder: Any
    variants: dict[str, Format1Variant]
    files: dict[str, Any]
    measured: Any


def convert_format_1(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Convert a manifest of format 1 to the keys of format 2; `format_version` stays 1.

    Args:
        content: the JSON object.
        path: the manifest's file, for messages.

    Raises:
        PackageError: the manifest breaks a rule of format 1, or its decoders have the operators
            of opset 24.
    """
    old = parse(content, Format1Manifest, path, known_keys_only=True)
    for variant in old.variants.values():
        if ".standard." in variant.decoder:
            raise PackageError(
                f"{path}: {variant.decoder} has operators of opset 24, expected opset 17, which "
                "standard decoders have since 0.2; export the package again with "
                "`--operators standard`."
            )
    decoder = old.decoder
    if isinstance(decoder, dict):
        decoder = {"operators": "microsoft", **decoder}
    graphs: dict[str, Any] = {}
    for name, variant in old.variants.items():
        encoders = variant.vision_encoder.values()
        for file in (*encoders, variant.projector, variant.prefill, variant.decoder):
            graphs[file] = _graph(file, name, old.files)
        # Where the checkpoint ties lm_head to the token embeddings, a decoder reads their files.
        # Format 1 does not say so.
        embeddings = (variant.embed_tokens, scale_file(variant.embed_tokens))
        weights = graphs[variant.decoder]["weights"]
        weights += [file for file in embeddings if file in old.files and file not in weights]
    return {
        **content,
        "prompt": _turns(old.prompt),
        "decoder": decoder,
        "variants": {name: asdict(variant) for name, variant in old.variants.items()},
        "graphs": graphs,
    }


def _turns(prompt: Format1Prompt) -> dict[str, str]:
    """Find the turns of a conversation in the prompt's text."""
    before, after = prompt.before_image, prompt.after_prompt
    user, assistant = 0, 0
    if TURN in before and TURN in after:
        user, assistant = before.rindex(TURN), after.rindex(TURN)
    return {
        "system": before[:user],
        "user": before[user:],
        "after_image": prompt.before_prompt,
        "end_of_turn": after[:assistant],
        "assistant": after[assistant:],
    }


def _graph(file: str, variant: str, files: dict[str, Any]) -> dict[str, Any]:
    """Derive a graph's record from its file name, such as `decoder.fp32.onnx`."""
    graph, *_, precision, suffix = (file if file.count(".") >= 2 else f"{file}..").split(".")
    is_decoder = graph in ("decoder", "prefill")
    weights = f"{'decoder' if is_decoder else graph}.{precision}.{suffix}.data"
    is_quantised = variant in VARIANTS and VARIANTS[variant].has_int8_embeddings
    least = LEAST_ONNXRUNTIME_8_BITS if is_quantised else "1.20"
    return {
        "weights": [weights] if weights in files else [],
        "opsets": OPSETS,
        "onnxruntime": least,
        "int8_products": precision == "int8",
        "cache_dtype": CACHE_DTYPES.get(precision, "float32") if is_decoder else None,
    }
