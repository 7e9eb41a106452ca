"""Draw the five sample pictures of the built-in model, with their questions and answers.

    python benchmarks/draw_demo_pictures.py

Their seeds are held-out ones: the model was not trained on them.
"""

import json
import random
from pathlib import Path

import demo_data as data

FOLDER = Path(__file__).resolve().parent.parent / "fastvlm_onnx/demo/pictures"
FIRST_SEED = data.HELD_OUT_SEED + 900_000_000
PICTURES = {
    "shapes.png": (17, "shapes"),
    "shapes-tall.png": (3, "shapes"),
    "shapes-wide.jpg": (7, "shapes"),
    "word.png": (29, "text"),
    "word-tall.jpg": (19, "text"),
}


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    questions: dict[str, dict[str, str]] = {}
    for name, (number, kind) in PICTURES.items():
        sample = data.draw_sample(FIRST_SEED + number, kind=kind)
        sample.picture.save(FOLDER / name)
        asked = data.ask(sample, random.Random(number))
        # The description first, then one question of each other kind.
        by_kind = {q.kind: q for q in reversed(asked)}
        kinds = ("describe", "text") if kind == "text" else ("describe", "count", "color", "shape")
        questions[name] = {by_kind[k].prompt: by_kind[k].answer for k in kinds if k in by_kind}
    text = json.dumps(questions, indent=2) + "\n"
    (FOLDER / "questions.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
