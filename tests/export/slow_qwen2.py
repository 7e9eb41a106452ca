"""Qwen2's tokenizer in plain Python, word by word and merge by merge, as predict.py runs it.

Source: the rule of transformers 4.48.3's Qwen2Tokenizer, the slow one that predict.py asks for.
"""

import json
import re
import unicodedata
from collections.abc import Collection
from functools import cache
from itertools import pairwise
from pathlib import Path

import regex
from transformers.convert_slow_tokenizer import bytes_to_unicode

WORD = regex.compile(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class SlowQwen2:
    """From vocab.json, merges.txt and added_tokens.json."""

    def __init__(self, folder: Path) -> None:
        self._vocab = json.loads((folder / "vocab.json").read_text("utf-8"))
        lines = (folder / "merges.txt").read_text("utf-8").splitlines()
        merges = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
        self._ranks = {merge: rank for rank, merge in enumerate(merges)}
        self._added = json.loads((folder / "added_tokens.json").read_text("utf-8"))
        self._characters = bytes_to_unicode()
        byte_of = {character: byte for byte, character in self._characters.items()}
        self._words = {i: bytes(map(byte_of.get, word)) for word, i in self._vocab.items()}
        self._merge = cache(self._merge_word)

    def encode(self, text: str, as_text: Collection[str] = ()) -> list[int]:
        """Ids of a text; added tokens are tokens, but for those in `as_text`."""
        tokens = "|".join(re.escape(token) for token in self._added if token not in as_text)
        ids = []
        for part in re.split(f"({tokens or r'(?!)'})", unicodedata.normalize("NFC", text)):
            if part in self._added and part not in as_text:
                ids.append(self._added[part])
            else:
                for word in WORD.findall(part):
                    ids += self._merge("".join(self._characters[b] for b in word.encode()))
        return ids

    def decode(self, ids: list[int], hidden: Collection[str]) -> str:
        """Text of ids without the tokens in `hidden`."""
        added = {i: token for token, i in self._added.items()}
        text, waiting = "", b""
        for i in ids:
            if i in self._words:
                waiting += self._words[i]
            elif added[i] not in hidden:
                text += waiting.decode(errors="replace") + added[i]
                waiting = b""
        return text + waiting.decode(errors="replace")

    def _merge_word(self, word: str) -> list[int]:
        parts = list(word)
        while len(parts) > 1:
            pairs = list(pairwise(parts))
            best = min(pairs, key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if best not in self._ranks:
                break
            merged = []
            while parts:
                size = 2 if tuple(parts[:2]) == best else 1
                merged.append("".join(parts[:size]))
                del parts[:size]
            parts = merged
        return [self._vocab[part] for part in parts]
