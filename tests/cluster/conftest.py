"""Pictures for jobs on Ray."""

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
