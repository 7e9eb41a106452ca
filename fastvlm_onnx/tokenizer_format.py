"""The one kind of tokenizer.json that this project writes and reads. Standard library only.

The library that reads tokenizer.json ends the whole process on some files, takes any amount of
memory for a large id, and any amount of time for a regular expression. So everything in the file
is compared with what Qwen2's tokenizer has, before the library sees it.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

# Qwen2's splitting rule (Qwen2Tokenizer, transformers 4.48.3).
QWEN2_SPLIT: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# More than three times Qwen2's.
LARGEST_VOCABULARY: Final = 500_000
LONGEST_TOKEN: Final = 1_000  # characters
_FIELDS: Final = {"truncation": (None,), "padding": (None,), "post_processor": (None, "ByteLevel")}
_MODEL: Final = {
    "dropout": (None,),
    "unk_token": (None,),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "fuse_unk": (False,),
    "byte_fallback": (False,),
    "ignore_merges": (False,),
}
_SPLIT: Final = {
    "type": ("Split",),
    "pattern": ({"Regex": QWEN2_SPLIT},),
    "behavior": ("Isolated",),
    "invert": (False, None),
}
_BYTE_LEVEL: Final = {
    "type": ("ByteLevel",),
    "add_prefix_space": (False,),
    "trim_offsets": (True, False, None),
    "use_regex": (False,),
}
_FLAGS: Final = ("single_word", "lstrip", "rstrip", "normalized", "special")


def tokenizer_fault(content: Mapping[str, Any]) -> str | None:
    """Return the first part of a tokenizer.json that is not as Qwen2's tokenizer has it.

    Args:
        content: the JSON object in the file.

    Returns:
        The found and the expected value, as a part of a message; None for a good file.
    """
    return next((fault for fault in _faults(content) if fault), None)


def _faults(content: Mapping[str, Any]) -> Iterator[str | None]:
    """Yield a fault, or None, for each part of the file."""
    yield _differing({name: _type(content.get(name)) for name in _FIELDS}, _FIELDS, "")
    yield vocabulary_fault(content.get("model"))
    yield _added_tokens_fault(content.get("added_tokens"))
    if _type(content.get("normalizer")) not in (None, "NFC"):
        yield _misfit("normalizer", content["normalizer"], "NFC or null")
    if _type(content.get("decoder")) != "ByteLevel":
        yield _misfit("decoder", content.get("decoder"), "ByteLevel")
    splitting = content.get("pre_tokenizer")
    steps = splitting.get("pretokenizers") if isinstance(splitting, dict) else None
    if not isinstance(steps, list) or len(steps) != 2:
        yield _misfit("pre_tokenizer", splitting, "Split, then ByteLevel")
    else:
        yield _differing(steps[0], _SPLIT, "pre_tokenizer.Split.")
        yield _differing(steps[1], _BYTE_LEVEL, "pre_tokenizer.ByteLevel.")


def vocabulary_fault(model: Any) -> str | None:
    """Return the first part of `model`, byte-pair encoding, that is not as Qwen2's has it."""
    if _type(model) != "BPE":
        return _misfit("model.type", _type(model), "'BPE'")
    if fault := _differing(model, _MODEL, "model."):
        return fault
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not 0 < len(vocab) <= LARGEST_VOCABULARY:
        return _misfit("model.vocab", vocab, f"an object of at most {LARGEST_VOCABULARY:,} tokens")
    for token, token_id in vocab.items():
        if len(token) > LONGEST_TOKEN:
            return _misfit("a token", token, f"at most {LONGEST_TOKEN:,} characters")
        if not _is_id(token_id):
            return _misfit(f"model.vocab[{token!r}]", token_id, f"0 to {LARGEST_VOCABULARY - 1:,}")
    if not isinstance(merges, list) or len(merges) > LARGEST_VOCABULARY:
        return _misfit("model.merges", merges, "a list of pairs")
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(p, str) for p in pair)
        ):
            return _misfit("a merge", merge, "a pair of tokens")
        for token in (*pair, "".join(pair)):
            if token not in vocab:
                return _misfit("a merge", merge, f"tokens of the vocabulary, without {token!r}")
    return None


def _added_tokens_fault(added: Any) -> str | None:
    if not isinstance(added, list) or len(added) > LARGEST_VOCABULARY:
        return _misfit("added_tokens", added, "a list")
    for token in added:
        if not isinstance(token, dict) or not _is_id(token.get("id")):
            return _misfit("an added token", token, "an object with an id in range")
        content = token.get("content")
        if not isinstance(content, str) or not 0 < len(content) <= LONGEST_TOKEN:
            return _misfit("added_tokens.content", content, "a text")
        if any(type(token.get(flag, False)) is not bool for flag in _FLAGS):
            return _misfit("an added token", token, "flags that are true or false")
    return None


def _differing(found: Any, allowed: Mapping[str, tuple[Any, ...]], where: str) -> str | None:
    """Return the first value of an object that is not allowed."""
    if not isinstance(found, dict):
        return _misfit(where.rstrip("."), found, "an object")
    for name, values in allowed.items():
        value = found.get(name, values[-1])
        # `False == 0` in Python, and JSON's false is no number.
        if not any(type(value) is type(one) and value == one for one in values):
            return _misfit(where + name, value, " or ".join(map(repr, values)))
    return None


def _type(value: Any) -> Any:
    return value.get("type", value) if isinstance(value, dict) else value


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < LARGEST_VOCABULARY


def _misfit(where: str, found: Any, expected: str) -> str:
    # A large part of a file is named by its kind alone.
    text = f"a {type(found).__name__}" if isinstance(found, list | dict) else repr(found)[:60]
    return f"{where} is {text}, expected {expected}"
