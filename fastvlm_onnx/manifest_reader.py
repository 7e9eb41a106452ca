"""Build dataclasses from JSON, and refuse every key or value that does not fit.

The dataclasses are the schema: a field without a default is a required key, a field with a default
is an optional key. Manifest formats themselves are not known here. Standard library only.
"""

import json
import math
from dataclasses import MISSING, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from fastvlm_onnx.errors import PackageError


def parse(
    value: Any, expected: Any, path: Path, where: str = "", *, known_keys_only: bool = False
) -> Any:
    """Build `expected` from a JSON value.

    Args:
        value: the value, as `json.loads` gives it.
        expected: a dataclass, `dict[str, T]`, `list[T]`, `T | None`, `Any` or a plain type.
        path: the JSON file, for messages.
        where: the keys that lead to the value, for messages.
        known_keys_only: refuse unknown keys of an object instead of ignoring them.

    Raises:
        PackageError: a required key is missing, a value has the wrong type, or an unknown key is
            refused.
    """

    def parse_item(item: Any, item_type: Any, key: object) -> Any:
        return parse(item, item_type, path, _join(where, key), known_keys_only=known_keys_only)

    origin = get_origin(expected)
    if expected is Any:
        return value
    if hasattr(expected, "__dataclass_fields__"):
        if not isinstance(value, dict):
            raise _misfit(path, where, value, "an object")
        known = {field.name: field for field in fields(expected)}
        for name, field in known.items():
            is_required = field.default is MISSING and field.default_factory is MISSING
            if is_required and name not in value:
                raise PackageError(
                    f"{path}: {_join(where, name)} is missing; export the package again."
                )
        for key in value:
            if known_keys_only and key not in known:
                raise PackageError(
                    f"{path}: {_join(where, key)} is not part of this format; "
                    "install a newer fastvlm-onnx, or export the package again."
                )
        present = {name: field.type for name, field in known.items() if name in value}
        return expected(**{key: parse_item(value[key], t, key) for key, t in present.items()})
    if origin is dict:
        if not isinstance(value, dict):
            raise _misfit(path, where, value, "an object")
        return {key: parse_item(item, get_args(expected)[1], key) for key, item in value.items()}
    if origin is list:
        if not isinstance(value, list):
            raise _misfit(path, where, value, "a list")
        return [parse_item(item, get_args(expected)[0], i) for i, item in enumerate(value)]
    if origin is UnionType:  # `T | None`
        if value is None:
            return None
        return parse(value, get_args(expected)[0], path, where, known_keys_only=known_keys_only)
    if expected is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if expected is float or type(value) is not expected or (expected is int and value < 0):
        kinds = {
            "int": "a number >= 0",
            "float": "a finite number",
            "str": "a text",
            "bool": "true or false",
        }
        raise _misfit(path, where, value, kinds[expected.__name__])
    return value


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _misfit(path: Path, where: str, value: Any, expected: str) -> PackageError:
    return PackageError(
        f"{path}: {where} is {json.dumps(value, ensure_ascii=False)[:60]}, expected {expected}; "
        "export the package again."
    )
