"""Figures as pictures: bars for a table of ways, lines for a cost that grows.

SVG written by hand, so that a plot needs no library.
"""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import cycle

Summary = Mapping[str, Mapping[str, float]]

LINE_COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2")
LABELS, BARS, GAP, ROW, HEAD = 210, 330, 70, 26, 56
COLOURS = {"vision": "#4c78a8", "prefill": "#f58518", "decode": "#54a24b"}


def draw(title: str, summaries: Mapping[str, Summary]) -> str:
    """A row for each way, in the order given; medians in milliseconds."""
    panels = {
        "time to first token, ms: vision, then prefill": ("vision", "prefill"),
        "time per token, ms": ("decode",),
    }
    width = LABELS + len(panels) * (BARS + GAP)
    height = HEAD + ROW * len(summaries) + 10
    parts = [_text(10, 20, title, "bold")]
    for row, name in enumerate(summaries):
        parts.append(_text(10, HEAD + ROW * row + 16, name))
    for column, (heading, names) in enumerate(panels.items()):
        left = LABELS + column * (BARS + GAP)
        parts.append(_text(left, 44, heading))
        parts += _panel(left, names, list(summaries.values()))
    return _svg(width, height, parts)


def draw_lines(title: str, figures: Mapping[str, Mapping[int, float]]) -> str:
    """A line for each name; seconds, shown as milliseconds, over what they grow with."""
    width, height, left, bottom, top = 640, 360, 60, 320, 50
    columns = list(next(iter(figures.values())))
    slowest = max(max(by_column.values()) for by_column in figures.values())

    def place(column: int, seconds: float) -> tuple[float, float]:
        x = left + (width - left - 110) * column / max(columns)
        return x, bottom - (bottom - top) * seconds / slowest

    parts = [_text(10, 20, title, "bold")]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        _, y = place(0, share * slowest)
        parts.append(f'<path d="M{left} {y:.1f}H{width - 110}" stroke="#ddd"/>')
        parts.append(_text(8, y + 4, f"{share * slowest * 1e3:.0f}"))
    labelled = -100.0
    for column in columns:
        x, y = place(column, 0)
        if x - labelled > 32:  # labels of near neighbours would cover each other
            parts.append(_text(x - 12, y + 18, str(column)))
            labelled = x
    for colour, (name, by_column) in zip(cycle(LINE_COLOURS), figures.items(), strict=False):
        points = [place(column, seconds) for column, seconds in by_column.items()]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        parts.append(f'<path d="M{path}" stroke="{colour}" stroke-width="2" fill="none"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        x, y = points[-1]
        parts.append(_text(x + 8, y + 4, name))
    return _svg(width, height, parts)


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def _panel(left: float, names: Sequence[str], rows: Sequence[Summary]) -> list[str]:
    totals = [sum(row[name]["median"] for name in names) for row in rows]
    parts = []
    for row, (summary, total) in enumerate(zip(rows, totals, strict=True)):
        top, x = HEAD + ROW * row + 3, float(left)
        for name in names:
            length = BARS * summary[name]["median"] / max(totals)
            parts.append(
                f'<rect x="{x:.1f}" y="{top}" width="{length:.1f}" height="{ROW - 8}" '
                f'fill="{COLOURS[name]}"/>'
            )
            x += length
        milliseconds = total * 1e3
        parts.append(_text(x + 4, top + 13, f"{milliseconds:.{0 if milliseconds >= 100 else 1}f}"))
    return parts


def _text(x: float, y: float, text: str, weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y}" font-weight="{weight}">{escape(text)}</text>'
