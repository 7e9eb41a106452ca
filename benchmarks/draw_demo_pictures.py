"""Draw the six sample pictures of the built-in model, with their questions and answers.

    python benchmarks/draw_demo_pictures.py
    python benchmarks/draw_demo_pictures.py --sheet sheet.png    # candidates, with their numbers

Their seeds are held-out ones: the model was not trained on them. The committed questions were drawn
before the phrasings became many more; the pictures are the same now.
"""

import argparse
import json
import random
from pathlib import Path

from demo_data.answers import describe
from demo_data.drawing import HELD_OUT_SEED, draw_sample
from demo_data.questions import ask
from PIL import Image, ImageDraw

FOLDER = Path(__file__).resolve().parent.parent / "fastvlm_onnx/demo/pictures"
FIRST_SEED = HELD_OUT_SEED + 900_000_000
PICTURES = {
    "shapes.png": (12, "shapes"),
    "shapes-tall.png": (47, "shapes"),
    "shapes-wide.jpg": (62, "shapes"),
    "hand.png": (75, "shapes"),
    "word.png": (51, "text"),
    "word-tall.jpg": (8, "text"),
}
SHEET, SIDE = (10, 8), 150


def draw_sheet(path: Path, kind: str) -> None:
    """Draw the first candidates of one kind side by side."""
    sheet = Image.new("RGB", (SHEET[0] * SIDE, SHEET[1] * SIDE), (90, 90, 120))
    draw = ImageDraw.Draw(sheet)
    for number in range(SHEET[0] * SHEET[1]):
        picture = draw_sample(FIRST_SEED + number, kind=kind).picture
        picture.thumbnail((SIDE - 4, SIDE - 14))
        x, y = number % SHEET[0] * SIDE, number // SHEET[0] * SIDE
        sheet.paste(picture, (x, y + 12))
        draw.text((x, y), f"{number} {picture.width}x{picture.height}", fill="white")
    sheet.save(path)


def draw_pictures() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    questions: dict[str, dict[str, str]] = {}
    for name, (number, kind) in PICTURES.items():
        sample = draw_sample(FIRST_SEED + number, kind=kind)
        sample.picture.save(FOLDER / name, quality=90)
        asked = ask(sample, random.Random(number))
        # The description first, then one question of each other kind.
        by_kind = {q.kind: q.prompt for q in reversed(asked)}
        answers = {q.prompt: q.answer for q in asked}
        kinds = ("text",) if kind == "text" else ("count", "color", "shape", "where")
        prompts = [by_kind[k] for k in kinds if k in by_kind]
        questions[name] = {"Describe the image.": describe(sample)}
        questions[name] |= {prompt: answers[prompt] for prompt in prompts}
    text = json.dumps(questions, indent=2) + "\n"
    (FOLDER / "questions.json").write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sheet", type=Path, help="draw candidates into this file instead")
    parser.add_argument("--kind", default="shapes")
    args = parser.parse_args()
    if args.sheet:
        draw_sheet(args.sheet, args.kind)
    else:
        draw_pictures()


if __name__ == "__main__":
    main()
