"""The second drawing program: it judges the built-in model, which is never trained on it.

    python benchmarks/second_drawings.py sheet.png                 # 60 pictures with their truths
    python benchmarks/second_drawings.py --accuracy --precision fp32,int8 --number 100

Pictures are composed as SVG and rasterised by resvg, with fonts that `second_program/raster.py`
lists. It shares no code, fonts or proportions with the program that draws the training pictures.

    pip install -c constraints.txt resvg_py==0.5.0 shapely
"""

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from second_program.canvas import Drawing
from second_program.hand import hand_picture
from second_program.judging import judge
from second_program.pictures import empty_picture, shapes_picture, single_picture, word_picture
from second_program.questions import KINDS, Question, questions
from second_program.raster import check_installed

import fastvlm_onnx
from fastvlm_onnx.errors import FastVLMError, InputError
from fastvlm_onnx.export.pipeline import export_package

__all__ = ["SEED", "Drawing", "Question", "draw", "judge", "questions", "the_set"]

SEED = 20261126
# The pictures of each kind in `the_set`.
NUMBERS = {"shapes": 260, "word": 120, "empty": 40, "hand": 40, "single": 40}
DRAWERS: dict[str, Callable[[np.random.Generator], Drawing]] = {
    "shapes": shapes_picture,
    "empty": empty_picture,
    "word": word_picture,
    "hand": hand_picture,
    "single": single_picture,
}


def draw(seed: int, kind: str) -> Drawing:
    """Draw a picture; the same seed and kind give the same pixels.

    Args:
        seed: 0 or more.
        kind: "shapes", "empty", "word", "hand" or "single".

    Raises:
        InputError: the rasteriser or a font is missing, or the kind is not known.
    """
    check_installed()
    if kind not in DRAWERS:
        raise InputError(f"unknown kind {kind!r}: expected one of {', '.join(DRAWERS)}")
    return DRAWERS[kind](np.random.default_rng([list(DRAWERS).index(kind), seed]))


def labelled_set() -> Iterator[tuple[str, Drawing, Question]]:
    """Yield the kind of picture, the drawing and the question, picture by picture.

    A picture of one kind of object is described or read; the other kinds of questions take turns,
    so that rare kinds come as often as common kinds.
    """
    asked = dict.fromkeys(KINDS, 0)
    for kind, number in NUMBERS.items():
        for index in range(number):
            drawing = draw(SEED + index, kind)
            found = questions(drawing, np.random.default_rng([SEED, index]))
            first, rest = found[0], sorted(found[1:], key=lambda q: asked[q.kind])
            for question in [first, *rest[: 2 if drawing.shapes else 1]]:
                asked[question.kind] += 1
                yield kind, drawing, question


def the_set() -> Iterator[tuple[Drawing, Question]]:
    """Yield each of the 500 pictures with each of its questions."""
    for _, drawing, question in labelled_set():
        yield drawing, question


def write_sheet(path: Path, kinds: list[str], start: int) -> None:
    """Write a contact sheet of 60 pictures with their truths."""
    columns, rows, cell, label = 10, 6, 200, 44
    sheet = Image.new("RGB", (columns * cell, rows * (cell + label)), (70, 70, 90))
    pen = ImageDraw.Draw(sheet)
    for index in range(columns * rows):
        drawing = draw(SEED + start + index // len(kinds), kinds[index % len(kinds)])
        picture = drawing.picture.copy()
        picture.thumbnail((cell - 8, cell - 8))
        x, y = index % columns * cell, index // columns * (cell + label)
        sheet.paste(picture, (x + 4, y + 4))
        pen.multiline_text((x + 4, y + cell), truth(drawing), fill=(255, 255, 255), spacing=1)
    sheet.save(path)


def truth(drawing: Drawing) -> str:
    """Return the truth of a drawing in a few short lines."""
    if drawing.text is not None:
        return f'"{drawing.text}" {drawing.text_color}'
    names = [f"{shape.color} {shape.name}" for shape in drawing.shapes] or ["nothing"]
    lines = [", ".join(names[i : i + 2]) for i in range(0, len(names), 2)]
    return "\n".join(lines)


def accuracy(checkpoint: str, precisions: list[str], number: int | None) -> None:
    """Export a checkpoint and print the share of right answers, a row for each precision."""
    # The drawings of all pictures need about 1 GB, so each precision draws them again.
    columns = [*KINDS, "single pictures", "hand pictures"]
    print(f"| % right | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "judged-onnx"
        export_package(checkpoint, package, precisions=precisions)
        for precision in precisions:
            model = fastvlm_onnx.load(package, precision=precision)
            scores: dict[str, list[float]] = defaultdict(list)
            for picture_kind, drawing, question in islice(labelled_set(), number):
                answer = model.generate(drawing.picture, question.prompt).text
                score = judge(drawing, question, answer)
                scores[question.kind].append(score)
                scores[f"{picture_kind} pictures"].append(score)
            cells = [f"{100 * np.mean(scores[c]):.1f}" if scores[c] else "-" for c in columns]
            print(f"| {precision} | {' | '.join(cells)} |", flush=True)
        print(f"| questions | {' | '.join(str(len(scores[c])) for c in columns)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sheet", nargs="?", type=Path, help="contact sheet to write (PNG)")
    parser.add_argument("--kind", default=",".join(NUMBERS), help="kinds of the contact sheet")
    parser.add_argument("--start", type=int, default=0, help="first picture of the contact sheet")
    parser.add_argument("--accuracy", action="store_true", help="ask the model every question")
    parser.add_argument("--model", default="demo", help="checkpoint to export")
    parser.add_argument("--precision", default="fp32,int8,int4,fast")
    parser.add_argument("--number", type=int, help="ask the first questions only")
    args = parser.parse_args()
    if not args.accuracy and args.sheet is None:
        parser.error("nothing to do: expected a file name or --accuracy")
    try:
        check_installed()
        if args.sheet is not None:
            write_sheet(args.sheet, args.kind.split(","), args.start)
        if args.accuracy:
            accuracy(args.model, args.precision.split(","), args.number)
    except FastVLMError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
