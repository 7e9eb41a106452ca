"""The table as a picture: time to first token in its two parts, and time per decoded token.

SVG written by hand, so that a plot needs no library.
"""

from collections.abc import Mapping, Sequence
from html import escape

Summary = Mapping[str, Mapping[str, float]]

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
