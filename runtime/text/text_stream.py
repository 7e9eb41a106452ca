"""An answer's text as its tokens come: whole characters, cut at stop texts, stripped."""

import codecs
from collections.abc import Sequence

from fastvlm_onnx.runtime.text.tokenizer import TextTokenizer


class AnswerText:
    """The text of an answer, without stop texts.

    Attributes:
        has_stopped: a stop text appeared, so no more text comes.
    """

    def __init__(
        self, tokenizer: TextTokenizer, stop: Sequence[str], *, strip: bool = True
    ) -> None:
        """Begin an answer.

        Args:
            strip: leave out white space at the ends.
        """
        self._characters, self._stop = TextStream(tokenizer), StopStream(stop)
        self._stripped = StrippedStream() if strip else None
        self._shown: list[str] = []

    @property
    def has_stopped(self) -> bool:
        return self._stop.has_stopped

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._shown)

    def add(self, token_id: int) -> str:
        """Add a token; return the text that is final with it."""
        return self._show(self._stop.add(self._characters.add([token_id])))

    def finish(self) -> str:
        """Return the text that was held back for tokens that do not come."""
        return self._show(self._stop.add(self._characters.finish()) + self._stop.finish())

    def _show(self, text: str) -> str:
        shown = text if self._stripped is None else self._stripped.add(text)
        self._shown.append(shown)
        return shown


class TextStream:
    """Characters from tokens. A character split over tokens waits for its last byte."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token_ids: list[int]) -> str:
        """Add tokens; return the characters that they complete."""
        return self._decoder.decode(b"".join(map(self._tokenizer.bytes_of, token_ids)))

    def finish(self) -> str:
        """Return U+FFFD if the last character is incomplete."""
        return self._decoder.decode(b"", final=True)


class StopStream:
    """Text up to the first stop text. Text that may begin a stop text is held back."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.has_stopped = False

    def add(self, text: str) -> str:
        if self.has_stopped:
            return ""
        text = self._held + text
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.has_stopped, self._held = True, ""
            return text[: min(found)]
        held = max((_begun(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """Return the text that was held back."""
        held, self._held = self._held, ""
        return held


def _begun(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    most = min(len(text), len(stop) - 1)
    return next((n for n in range(most, 0, -1) if text.endswith(stop[:n])), 0)


class StrippedStream:
    """Text without the white space at its two ends. White space at the end is held back."""

    def __init__(self) -> None:
        self._begun = False
        self._held = ""

    def add(self, text: str) -> str:
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        text = self._held + text
        shown = text.rstrip()
        self._held = text[len(shown) :]
        return shown
