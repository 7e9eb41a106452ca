"""Read JSON files of a checkpoint, with errors that name the file."""

import json
from pathlib import Path
from typing import Any

from fastvlm_onnx.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file.

    Raises:
        CheckpointError: the file is missing, is not valid JSON, or does not hold an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent}: found no {path.name}; expected a checkpoint folder as Apple stores it "
            "(config.json, *.safetensors, vocab.json, merges.txt, added_tokens.json)."
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as JSON ({error}); download or copy it again."
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: found a {type(content).__name__}, expected an object.")
    return content
