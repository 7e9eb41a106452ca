"""Every error a caller may want to catch, under one root.

    FastVLMError
    |-- PackageError          an exported folder, or writing one
    |-- CheckpointError       what export reads
    |   `-- UnsupportedError  a configuration that is not built
    |-- InputError            a picture, a prompt, an argument
    |   |-- PromptTooLongError
    |   `-- NotSeenError      a picture's id that is not known
    |-- BusyError             too many questions wait
    |-- ClosedError           a scheduler that takes no more questions
    `-- ProviderError         an execution provider, or ONNX Runtime itself missing

A message says what was found, what was expected and what to do. It is one line of at most
LONGEST_MESSAGE characters, whatever the names in it are.
"""

from typing import Final

LONGEST_MESSAGE: Final = 380
"""Characters of a message. A command writes "error: " before it, and stays under 400."""
LONGEST_WORD: Final = 200
"""Characters of a word in a message, for example of a path."""


def one_line(text: str) -> str:
    """Make a text fit for one line of a terminal or a log.

    Control characters, line breaks and bytes that are not UTF-8 become escapes or spaces. Words
    over LONGEST_WORD characters, and texts over LONGEST_MESSAGE, lose their middle.
    """
    words = (_shortened(_printable(word), LONGEST_WORD) for word in text.split())
    return _shortened(" ".join(words), LONGEST_MESSAGE)


def _printable(word: str) -> str:
    if word.isprintable():
        return word
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in word)


def _shortened(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    end = longest // 3
    return f"{text[: longest - end - 1]}…{text[-end:]}"


class FastVLMError(Exception):
    """Root of all errors raised on purpose; the caller can do something about each."""

    def __init__(self, *arguments: object) -> None:
        """Keep the message as one line."""
        super().__init__(*(one_line(a) if isinstance(a, str) else a for a in arguments))


class PackageError(FastVLMError):
    """An exported folder is missing, incomplete or altered, or cannot be written."""


class CheckpointError(FastVLMError):
    """A checkpoint is missing, incomplete, or not a FastVLM."""


class UnsupportedError(CheckpointError):
    """A FastVLM configuration that this project does not build."""


class InputError(FastVLMError):
    """A picture, prompt or argument that cannot be used."""


class PromptTooLongError(InputError):
    """The prompt, with its image tokens, leaves no room in the model's context."""


class NotSeenError(InputError):
    """The id of a seen picture is not known: it has expired, or was never given."""


class BusyError(FastVLMError):
    """As many questions as may wait are waiting already; ask again later."""


class ClosedError(FastVLMError):
    """A scheduler is closing or closed, and takes no more questions."""


class ProviderError(FastVLMError):
    """An execution provider is not there, takes nothing of a graph, or failed."""
