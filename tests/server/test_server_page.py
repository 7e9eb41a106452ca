"""docs/server.md names the options, defaults, fields and routes of the server."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from fastvlm_onnx.server.openapi import openapi
from fastvlm_onnx.server.schemas import ChatRequest
from fastvlm_onnx.server.settings import Settings

PAGE = (Path(__file__).resolve().parents[2] / "docs/server.md").read_text("utf-8")
OPTIONS = [field for field in fields(Settings) if field.metadata]


@pytest.mark.parametrize("field", OPTIONS, ids=lambda field: str(field.name))
def test_the_page_names_every_option_with_its_default(field: object) -> None:
    name, default = field.name, field.default  # type: ignore[attr-defined]
    flag = f"--{field.metadata['flag'] or name.replace('_', '-')}"  # type: ignore[attr-defined]
    assert f"`{flag}" in PAGE
    row = re.search(rf"^\| `{flag}` \| ([^|]+) \|", PAGE, re.MULTILINE)
    if row and default is not None:
        assert float(row[1]) == float(default)
    is_limit = re.match(r"max_|fetch_|body_|see_|.*_mb$|grace", name)
    assert bool(row) == bool(is_limit)


def test_the_page_names_every_field_and_route() -> None:
    for name in ChatRequest.model_fields:
        assert f"`{name}`" in PAGE
    for path in openapi()["paths"]:
        assert path in PAGE
