"""The built-in model's checkpoint and sample pictures, which are installed with the package."""

from pathlib import Path
from typing import Final

DEMO_CHECKPOINT: Final = Path(__file__).parent / "demo" / "checkpoint"
SAMPLE_PICTURES: Final = Path(__file__).parent / "demo" / "pictures"
SAMPLE_PICTURE: Final = SAMPLE_PICTURES / "shapes.png"
# File name of each sample picture -> prompt -> the built-in model's answer.
SAMPLE_QUESTIONS: Final = SAMPLE_PICTURES / "questions.json"
# The pictures of golden.json.
GOLDEN_PICTURES: Final = Path(__file__).parent / "demo" / "golden"
