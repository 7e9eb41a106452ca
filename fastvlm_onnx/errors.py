"""Every error a caller may want to catch, under one root.

    FastVLMError
    |-- PackageError          an exported folder, or writing one
    |-- CheckpointError       what export reads
    |   `-- UnsupportedError  a configuration that is not built
    |-- InputError            a picture, a prompt, an argument
    |   `-- PromptTooLongError
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


class ProviderError(FastVLMError):
    """An execution provider is not there, takes nothing of a graph, or failed."""
