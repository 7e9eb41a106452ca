"""Read JSON files of a checkpoint, with errors that name the file."""

from pathlib import Path
from typing import Any

from fastvlm_onnx.errors import CheckpointError
from fastvlm_onnx.untrusted_files import read_json_object


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file.

    Raises:
        CheckpointError: the file is missing, is too large, is not valid JSON, has a key twice, or
            does not hold an object.
    """
    try:
        return read_json_object(path, CheckpointError, "download or copy it again")
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent}: found no {path.name}; expected a checkpoint folder as Apple stores it "
            "(config.json, *.safetensors, vocab.json, merges.txt, added_tokens.json)."
        ) from None
