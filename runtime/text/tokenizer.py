"""Text <-> token ids.

A user's text holds no special tokens: `<|im_end|>` in it is encoded as characters. Only a template
holds special tokens. An added token that is not special is ordinary text.
"""

import re
import unicodedata
from pathlib import Path

from tokenizers import Tokenizer

from fastvlm_onnx.errors import PackageError
from fastvlm_onnx.tokenizer_format import tokenizer_fault
from fastvlm_onnx.untrusted_files import read_json_object


class TextTokenizer:
    """A package's tokenizer.json."""

    def __init__(self, path: Path) -> None:
        """Load the file.

        Raises:
            PackageError: the file is missing, is not a tokenizer, or is another kind of tokenizer
                than Qwen2's.
        """
        try:
            content = read_json_object(path, PackageError, "export the package again")
        except FileNotFoundError:
            raise PackageError(f"{path}: missing; export the package again.") from None
        if fault := tokenizer_fault(content):
            raise PackageError(f"{path}: not a tokenizer ({fault}); export the package again.")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise PackageError(
                f"{path}: not a tokenizer ({error}); export the package again."
            ) from None
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {token.content: i for i, token in added.items() if token.special}
        # Added tokens are stored as text, not in the byte alphabet. Special tokens show no text.
        self._added_bytes = {
            i: b"" if token.special else token.content.encode() for i, token in added.items()
        }
        self._splitter = re.compile("|".join(map(re.escape, self._special)) or r"(?!)")
        # Encode `<|im_end|>` in a text as its characters.
        self._tokenizer.encode_special_tokens = True
        self._byte_of = _byte_alphabet()

    @property
    def vocab_size(self) -> int:
        """The largest token id plus 1."""
        return max(self._tokenizer.get_vocab().values()) + 1

    @property
    def special_token_ids(self) -> list[int]:
        """Tokens that show no text."""
        return list(self._special.values())

    def encode(self, text: str) -> list[int]:
        """Token ids of a text in which special tokens are characters."""
        # Python's NFC, as in predict.py's tokenizer: tokenizers' own knows an older Unicode.
        text = unicodedata.normalize("NFC", text)
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_template(self, text: str) -> list[int]:
        """Token ids of a template in which special tokens are tokens."""
        text = unicodedata.normalize("NFC", text)
        ids: list[int] = []
        end = 0
        for match in self._splitter.finditer(text):
            ids += self.encode(text[end : match.start()]) if match.start() > end else []
            ids.append(self._special[match[0]])
            end = match.end()
        return ids + (self.encode(text[end:]) if end < len(text) else [])

    def decode(self, token_ids: list[int]) -> str:
        """Text of token ids, without special tokens; broken characters become U+FFFD."""
        return b"".join(map(self.bytes_of, token_ids)).decode("utf-8", "replace")

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes of a token; empty for a special token."""
        if token_id in self._added_bytes:
            return self._added_bytes[token_id]
        token = self._tokenizer.id_to_token(token_id) or ""
        # A vocabulary may hold words outside the byte alphabet, which encode never returns.
        if any(character not in self._byte_of for character in token):
            return str(token).encode()
        return bytes(self._byte_of[character] for character in token)


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE's printable stand-in for each byte.

    Source: GPT-2's encoder; bytes that print stand for themselves, the rest follow from U+0100 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + i): byte for i, byte in enumerate(others)}
