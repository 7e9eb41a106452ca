"""Read a checkpoint's tokenizer files as one tokenizer.json.

Apple's folders hold vocab.json, merges.txt and added_tokens.json, and no tokenizer.json.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from fastvlm_onnx.errors import CheckpointError
from fastvlm_onnx.export.disk.json_files import read_json
from fastvlm_onnx.tokenizer_format import QWEN2_SPLIT, tokenizer_fault, vocabulary_fault
from fastvlm_onnx.untrusted_files import read_json_object, regular_file_size


@dataclass(frozen=True)
class TokenizerFile:
    """The text of a tokenizer.json, and the tokenizer's length: its highest id plus one."""

    text: str
    length: int


def read_tokenizer(folder: Path) -> TokenizerFile:
    """Read vocab.json, merges.txt and the added tokens; without vocab.json, tokenizer.json.

    Raises:
        CheckpointError: a file is missing, its content is invalid, or the tokenizer is another
            kind than Qwen2's.
    """
    try:
        if (folder / "vocab.json").is_file():
            tokenizer = _build_qwen2(folder)
        else:
            tokenizer = _open_tokenizer(folder / "tokenizer.json")
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{error.filename}: missing; the tokenizer needs vocab.json, merges.txt and "
            "added_tokens.json: download the checkpoint again."
        ) from None
    except CheckpointError:
        raise
    # tokenizers raises plain Exception for a file that it cannot read.
    except Exception as error:
        raise CheckpointError(
            f"{folder}: the tokenizer's files cannot be read ({error}); expected vocab.json, "
            "merges.txt and added_tokens.json, or tokenizer.json: download the checkpoint again."
        ) from None
    return TokenizerFile(tokenizer.to_str(), max(tokenizer.get_vocab().values()) + 1)


def _open_tokenizer(path: Path) -> Tokenizer:
    content = _read(path)
    # Both would change a prompt, and the third is never used: special tokens are in the template.
    content |= {"truncation": None, "padding": None, "post_processor": None}
    if fault := tokenizer_fault(content):
        raise CheckpointError(f"{path}: {fault}; only Qwen2's tokenizer is built.")
    return Tokenizer.from_str(json.dumps(content))


def _read(path: Path) -> dict[str, Any]:
    return read_json_object(path, CheckpointError, "download or copy it again")


def _build_qwen2(folder: Path) -> Tokenizer:
    vocab = _read(folder / "vocab.json")
    merges_file = folder / "merges.txt"
    regular_file_size(merges_file, CheckpointError)
    lines = merges_file.read_text("utf-8").split("\n")
    if lines[0].startswith("#version"):
        del lines[0]
    merges = [(left, right) for line in lines if line for left, right in [line.split(" ")]]
    pairs = [list(pair) for pair in merges]
    if fault := vocabulary_fault({"type": "BPE", "vocab": vocab, "merges": pairs}):
        raise CheckpointError(f"{folder}: {fault}; only Qwen2's tokenizer is built.")
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = _added_tokens(folder)
    tokenizer.add_tokens([added[token_id] for token_id in sorted(added)])
    for token_id, token in added.items():
        if tokenizer.token_to_id(token.content) != token_id:
            raise ValueError(
                f"the added tokens give {token.content} the id {token_id}, expected "
                f"{tokenizer.token_to_id(token.content)}, the next after vocab.json"
            )
    return tokenizer


def _added_tokens(folder: Path) -> dict[int, AddedToken]:
    """Read added tokens by id from tokenizer_config.json, else from added_tokens.json.

    tokenizer_config.json, which transformers reads, also states which tokens are special. Eight of
    Qwen2.5's added tokens, such as `<tool_call>`, are not special, so they appear in answers.
    """
    config = folder / "tokenizer_config.json"
    listed = read_json(config).get("added_tokens_decoder") if config.is_file() else None
    if not listed:
        added = _read(folder / "added_tokens.json")
        listed = {i: {"content": token, "special": True} for token, i in added.items()}
    flags = ("special", "lstrip", "rstrip", "single_word")
    return {
        int(i): AddedToken(
            token["content"], normalized=False, **{flag: token.get(flag, False) for flag in flags}
        )
        for i, token in listed.items()
    }
