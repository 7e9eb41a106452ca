"""An answer's text as its tokens come: whole characters, cut at stop texts, stripped."""

import codecs
from collections.abc import Sequence

from fastvlm_onnx.runtime.text.tokenizer import TextTokenizer


class AnswerText:
    """From tokens to the text that is shown, white space at the two ends left out.

    Attributes:
        has_stopped: one of the stop strings was there; no more text comes.
    """

    def __init__(self, tokenizer: TextTokenizer, stop: Sequence[str]) -> None:
        self._characters, self._stop = TextStream(tokenizer), StopStream(stop)
        self._stripped = StrippedStream()
        self._shown: list[str] = []

    @property
    def has_stopped(self) -> bool:
        return self._stop.has_stopped

    @property
    def text(self) -> str:
        """All that was shown so far."""
        return "".join(self._shown)

    def add(self, token_id: int) -> str:
        """What can be shown with this token."""
        return self._show(self._stop.add(self._characters.add([token_id])))

    def finish(self) -> str:
        """What is left to show when no more tokens come."""
        return self._show(self._stop.add(self._characters.finish()) + self._stop.finish())

    def _show(self, text: str) -> str:
        shown = self._stripped.add(text)
        self._shown.append(shown)
        return shown


class TextStream:
    """Text from tokens as they come: a character split over tokens waits for its last byte."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token_ids: list[int]) -> str:
        """The characters that these tokens complete."""
        return self._decoder.decode(b"".join(map(self._tokenizer.bytes_of, token_ids)))

    def finish(self) -> str:
        """What is left when no more tokens come: U+FFFD if a character was never completed."""
        return self._decoder.decode(b"", final=True)


class StopStream:
    """Text up to the first of some strings; what may become one is held back."""

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
        """What was held back, and is none of them after all."""
        held, self._held = self._held, ""
        return held


def _begun(text: str, stop: str) -> int:
    """How many characters at the text's end begin the string."""
    most = min(len(text), len(stop) - 1)
    return next((n for n in range(most, 0, -1) if text.endswith(stop[:n])), 0)


class StrippedStream:
    """Pieces of a text without the white space at its two ends, whatever their boundaries."""

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
