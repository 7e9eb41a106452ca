"""Draw the five sample pictures of the built-in model, with their questions and answers.

    python benchmarks/draw_demo_pictures.py

None of them is among the pictures that the model was trained on.
"""

import json
from pathlib import Path

import demo_data as data

FOLDER = Path(__file__).resolve().parent.parent / "fastvlm_onnx/demo/pictures"


def main() -> None:
    print(FOLDER)


if __name__ == "__main__":
    main()
