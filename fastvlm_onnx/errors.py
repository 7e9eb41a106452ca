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

A message says what was found, what was expected and what to do.
"""


class FastVLMError(Exception):
    """Root of all errors raised on purpose; the caller can do something about each."""


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
