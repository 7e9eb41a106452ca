"""Pictures for jobs on Ray."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A folder of small pictures that differ."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(192):
        color = (number, 90, 200 - number)
        Image.new("RGB", (40, 30), color).save(folder / f"{number:03}.png")
    return folder


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder for Ray's sockets, whose paths have at most 107 bytes."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)
