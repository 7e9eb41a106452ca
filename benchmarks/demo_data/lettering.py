"""Write a word as an "L" mask, with a font or with a pen, for a picture `width` pixels wide."""

import random
from itertools import pairwise

from PIL import Image, ImageDraw

from demo_data import outlines, words
from demo_data.outlines import Point
from demo_data.stroke_letters import letter


def font_layer(
    rng: random.Random, text: str, width: int, is_hard: bool = False
) -> tuple[Image.Image, list[float]]:
    """The word as an "L" mask that is tight around it, and each character's centre."""
    # Drawn near its final size, so that thin strokes stay sharp.
    guess = min(140.0, max(22.0, width * rng.uniform(0.5, 0.9) / (0.6 * len(text) + 0.2)))
    font = words.load_font(words.draw_font(rng, text, is_hard), round(guess / 6) * 6)
    spacing = rng.choice((0.0, 0.0, 0.0, rng.uniform(0, 0.3))) * guess
    edges = [font.getlength(text[:k]) + spacing * k for k in range(len(text) + 1)]
    ascent, descent = font.getmetrics()
    pad = round(guess * 0.2)
    layer = Image.new("L", (round(edges[-1]) + 2 * pad, ascent + descent + 2 * pad))
    draw = ImageDraw.Draw(layer)
    bold = rng.choice((0, 0, 0, 1)) if guess > 40 else 0
    if spacing:
        for character, left in zip(text, edges, strict=False):
            draw.text((pad + left, pad), character, fill=255, font=font, stroke_width=bold)
    else:
        draw.text((pad, pad), text, fill=255, font=font, stroke_width=bold)
    box = layer.getbbox() or (0, 0, layer.width, layer.height)
    layer = layer.crop(box)
    centers = [pad + (a + b - (spacing if spacing else 0)) / 2 - box[0] for a, b in pairwise(edges)]
    return layer, centers


def pen_layer(
    rng: random.Random, text: str, width: int, is_hard: bool = False
) -> tuple[Image.Image, list[float]]:
    """The same, written with a pen."""
    size = min(110.0, max(20.0, width * 0.7 / (1.35 * len(text))))
    thick = size * rng.uniform(0.07, 0.2)
    pad = round(thick + 0.3 * size)
    wobble = rng.choice((0.0, 0.02, 0.04))
    x = float(pad)
    slant = rng.uniform(-0.12, 0.3) if is_hard else 0.0
    strokes: list[list[Point]] = []
    centers = []
    for character in text:
        lines, wide = letter(character, rng if is_hard else None)
        shift = rng.uniform(-1, 1) * wobble * 2
        grow = 1 + rng.uniform(-1, 1) * wobble * 3
        turn = rng.uniform(-2, 2) * wobble if is_hard else 0.0
        for line in lines:
            points = outlines.turned([(px - wide / 2, py - 0.7) for px, py in line], turn)
            placed = [
                (
                    (px + wide / 2 - slant * py) * grow * size + x,
                    ((py + 0.7) * grow + shift) * size + pad,
                )
                for px, py in points
            ]
            dense = outlines.dense(placed, size / 5, is_closed=False)
            strokes.append(outlines.wobbled(rng, dense, wobble * size) if wobble else dense)
        centers.append(x + wide * size / 2)
        x += (wide + rng.uniform(0.22 if is_hard else 0.3, 0.5)) * size + thick
    layer = Image.new("L", (round(x) + pad, round(1.6 * size) + 2 * pad))
    draw = ImageDraw.Draw(layer)
    for stroke in strokes:
        draw.line(stroke, fill=255, width=max(1, round(thick)), joint="curve")
        r = thick / 2
        for px, py in (stroke[0], stroke[-1]):
            draw.ellipse((px - r, py - r, px + r, py + r), fill=255)
    box = layer.getbbox() or (0, 0, layer.width, layer.height)
    return layer.crop(box), [center - box[0] for center in centers]
