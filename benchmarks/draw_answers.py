"""Draw the second program's pictures with the built-in model's answers: docs/built-in-model.jpg.

    python benchmarks/draw_answers.py                       # 48 questions, evenly spread
    python benchmarks/draw_answers.py --precision int4 -o /tmp/int4.jpg

A right answer has a green frame, a wrong answer a red one. No answer is left out.
"""

import argparse
import sys
import tempfile
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from second_drawings import judge, labelled_set

import fastvlm_onnx
from fastvlm_onnx.errors import FastVLMError
from fastvlm_onnx.export.pipeline import export_package

REPOSITORY = Path(__file__).resolve().parent.parent
COLUMNS, ROWS, CELL, LABEL = 8, 6, 190, 74
RIGHT, WRONG = (60, 150, 70), (205, 45, 45)


def draw_answers(checkpoint: str, precision: str, output: Path) -> None:
    asked = list(labelled_set())
    step = len(asked) // (COLUMNS * ROWS)
    sheet = Image.new("RGB", (COLUMNS * CELL, ROWS * (CELL + LABEL)), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(11)
    with tempfile.TemporaryDirectory() as folder:
        export_package(checkpoint, Path(folder) / "package", precisions=[precision])
        model = fastvlm_onnx.load(Path(folder) / "package", precision=precision)
        for place in range(COLUMNS * ROWS):
            _, drawing, question = asked[place * step]
            answer = model.generate(drawing.picture, question.prompt).text
            is_right = judge(drawing, question, answer) == 1
            x, y = place % COLUMNS * CELL, place // COLUMNS * (CELL + LABEL)
            picture = drawing.picture.copy()
            picture.thumbnail((CELL - 14, CELL - 14))
            frame = (x + 2, y + 2, x + CELL - 4, y + CELL + LABEL - 4)
            pen.rectangle(frame, outline=RIGHT if is_right else WRONG, width=3)
            sheet.paste(picture, (x + (CELL - picture.width) // 2, y + 7))
            lines = textwrap.wrap(question.prompt, 32)[:2]
            lines += [f"> {line}" for line in textwrap.wrap(answer, 30)[:3]]
            pen.multiline_text((x + 9, y + CELL - 4), "\n".join(lines), fill="black", font=font)
    sheet.save(output, quality=80)
    print(f"wrote {output}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo", help="checkpoint to export")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("-o", "--output", type=Path, default=REPOSITORY / "docs/built-in-model.jpg")
    args = parser.parse_args()
    try:
        draw_answers(args.model, args.precision, args.output)
    except FastVLMError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
