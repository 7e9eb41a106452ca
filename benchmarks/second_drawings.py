"""The second drawing program: it judges the built-in model, which is never trained on it.

    python benchmarks/second_drawings.py sheet.png                 # 60 pictures with their truths
    python benchmarks/second_drawings.py --accuracy --precision fp32,int8 --number 100

Pictures are composed as SVG and rasterised by resvg, with fonts that `second_program/raster.py`
lists. It shares no code, fonts or proportions with the program that draws the training pictures.

    pip install -c constraints.txt resvg_py==0.5.0 shapely==2.2.0
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

import fastvlm_onnx
from fastvlm_onnx.errors import FastVLMError, InputError
from fastvlm_onnx.export.pipeline import export_package

try:
    from second_program.canvas import Drawing
    from second_program.hand import hand_picture
    from second_program.judging import judge
    from second_program.pictures import empty_picture, shapes_picture, single_picture, word_picture
    from second_program.questions import KINDS, Question, questions
    from second_program.raster import check_installed
except ModuleNotFoundError as error:
    install = "pip install -c constraints.txt resvg_py==0.5.0 shapely==2.2.0"
    print(f"error: {error.name} is not installed: run `{install}`", file=sys.stderr)
    raise SystemExit(2) from None

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

    The first question asks about the whole picture: describe, read, or find nothing. The other
    kinds of questions take turns, so that rare kinds come as often as common kinds. The kinds of
    pictures are mixed, so that the first questions are a fair sample.
    """
    asked = dict.fromkeys(KINDS, 0)
    places = [
        ((i + 0.5) / number, i, kind) for kind, number in NUMBERS.items() for i in range(number)
    ]
    for _, index, kind in sorted(places):
        drawing = draw(SEED + index, kind)
        found = questions(drawing, np.random.default_rng([SEED, index, list(NUMBERS).index(kind)]))
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
    try:
        sheet.save(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {path}: {error}; expected a path to a new PNG") from error


def truth(drawing: Drawing) -> str:
    """Return the truth of a drawing in a few short lines."""
    if drawing.text is not None:
        return f'"{drawing.text}" {drawing.text_color}'
    names = [f"{shape.color} {shape.name}" for shape in drawing.shapes] or ["nothing"]
    lines = [", ".join(names[i : i + 2]) for i in range(0, len(names), 2)]
    return "\n".join(lines)


def accuracy(checkpoint: str, precisions: list[str], number: int | None) -> None:
    """Export a checkpoint, ask every question, and print a table with a row for each precision.

    A cell is the mean score of a kind of questions in percent. The last two columns count the
    pictures of one shape and the pictures by hand whose first question was answered without fault.
    """
    scores: dict[tuple[str, str], list[float]] = defaultdict(list)
    wholes: dict[tuple[str, str], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "judged-onnx"
        export_package(checkpoint, package, precisions=precisions)
        models = {name: fastvlm_onnx.load(package, precision=name) for name in precisions}
        previous = None
        for picture_kind, drawing, question in islice(labelled_set(), number):
            for name, model in models.items():
                answer = model.generate(drawing.picture, question.prompt).text
                score = judge(drawing, question, answer)
                scores[name, question.kind].append(score)
                if drawing is not previous:
                    wholes[name, picture_kind].append(score)
            previous = drawing
    print(f"| % right | {' | '.join(KINDS)} | single | hand |\n|---|{'---|' * (len(KINDS) + 2)}")
    for name in precisions:
        means = [scores[name, kind] for kind in KINDS]
        cells = [f"{100 * np.mean(found):.1f}" if found else "-" for found in means]
        for kind in ("single", "hand"):
            found = wholes[name, kind]
            cells.append(f"{sum(score == 1 for score in found)} of {len(found)}")
        print(f"| {name} | {' | '.join(cells)} |")
    asked = [str(len(scores[precisions[0], kind])) for kind in KINDS]
    print(f"| questions | {' | '.join(asked)} | | |")


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
    if args.number is not None and args.number < 1:
        parser.error(f"--number {args.number}: expected 1 or more")
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
