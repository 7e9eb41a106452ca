"""Read files that a stranger may have made, with bounds. Standard library only.

A FIFO or a device would block or never end, and a JSON text can be deep, huge or ambiguous. Each
is an error of one line instead.
"""

import json
import math
import stat
from pathlib import Path
from typing import Any, Final

from fastvlm_onnx.errors import FastVLMError

# The largest JSON file that is read, in bytes. Qwen2's tokenizer.json has 11 million.
LARGEST_JSON: Final = 64_000_000
_KINDS: Final = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def regular_file_size(path: Path, error: type[FastVLMError]) -> int:
    """Return the size of a regular file in bytes, without opening it.

    Args:
        path: a file, or a symbolic link to a file.
        error: the class of the exception that is raised.

    Raises:
        FileNotFoundError: the file is missing.
        FastVLMError: the path is no regular file; it is of the class `error`.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        kind = next((name for test, name in _KINDS if test(found.st_mode)), "no file")
        raise error(f"{path}: is {kind}, expected a regular file; copy it again.")
    return found.st_size


def read_json_object(
    path: Path, error: type[FastVLMError], advice: str, largest: int = LARGEST_JSON
) -> dict[str, Any]:
    """Read the JSON object in a file, in UTF-8 without a byte order mark.

    Args:
        path: the file.
        error: the class of the exception that is raised.
        advice: the end of a message, which says what to do.
        largest: the largest size of the file in bytes.

    Raises:
        FileNotFoundError: the file is missing.
        FastVLMError: the file is too large, cannot be read, is not valid JSON, has a key twice, or
            holds no object; it is of the class `error`.
    """
    try:
        if (size := regular_file_size(path, error)) > largest:
            raise error(f"{path}: has {size:,} bytes, expected at most {largest:,}; {advice}.")
        content = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as failure:
        raise error(f"{path}: cannot be read as JSON ({failure}); {advice}.") from None
    if not isinstance(content, dict):
        raise error(f"{path}: found a {type(content).__name__}, expected an object; {advice}.")
    return content


def parse_json(text: str) -> Any:
    """Parse JSON as its standard has it: no NaN, no infinity, no key twice, no deep nesting.

    Raises:
        ValueError: the text is no such JSON.
    """
    try:
        return json.loads(
            text,
            object_pairs_hook=_object,
            parse_float=_finite,
            parse_constant=_refuse_constant,
        )
    except RecursionError:
        raise ValueError("lists or objects are nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {repeated[:60]!r} is there twice")
    return content


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"the number {text[:20]} is too large")
    return number


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")
