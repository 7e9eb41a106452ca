"""Plots of the benchmarks, as SVG.

Bars show a table of ways, lines a cost that grows, points two figures of each way.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Summary = Mapping[str, Mapping[str, float]]
"""A figure's name -> "median" and "minimum", in seconds."""

PANELS = {
    "time to first token, ms: vision, then prefill": ("vision", "prefill"),
    "time per token, ms": ("decode",),
}
COLOURS = {"vision": "#4c78a8", "prefill": "#f58518", "decode": "#54a24b"}
# Labels of points whose figures differ by less than this factor would overlap.
CLOSE = 1.1
STYLE = {
    # Text stays text, and equal figures give equal files.
    "svg.fonttype": "none",
    "svg.hashsalt": "benchmarks",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.family": "sans-serif",
    "font.size": 9,
}


def draw_bars(title: str, summaries: Mapping[str, Summary], path: Path) -> None:
    """Write a bar chart with a row for each way, in the order given, and medians in milliseconds.

    Args:
        title: the size of the model and the conditions.
        summaries: a way's name -> its figures.
        path: the SVG file to write.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 0.9 + 0.3 * len(summaries)), layout="constrained")
        figure.suptitle(title, weight="bold")
        all_axes = figure.subplots(1, len(PANELS), sharey=True)
        for axes, (heading, names) in zip(all_axes, PANELS.items(), strict=True):
            draw_panel(axes, heading, names, summaries)
        save(figure, path)


def draw_panel(
    axes: Axes, heading: str, names: tuple[str, ...], summaries: Mapping[str, Summary]
) -> None:
    """Draw one panel of a bar chart; the named figures stand end to end."""
    ways = list(summaries)
    totals = [0.0] * len(ways)
    bars = None
    for name in names:
        milliseconds = [summaries[way][name]["median"] * 1e3 for way in ways]
        bars = axes.barh(ways, milliseconds, left=totals, color=COLOURS[name], height=0.7)
        totals = [total + more for total, more in zip(totals, milliseconds, strict=True)]
    assert bars is not None
    labels = [f"{total:.{0 if total >= 100 else 1}f}" for total in totals]
    axes.bar_label(bars, labels, padding=3)
    axes.set_title(heading, loc="left", fontsize="medium")
    axes.set_xlim(0, max(totals) * 1.15)
    if not axes.yaxis_inverted():  # the first way on top
        axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)


def draw_lines(
    title: str, axis: str, figures: Mapping[str, Mapping[int, float]], path: Path
) -> None:
    """Write a line chart with a line for each variant.

    Args:
        title: the quantity and the machine.
        axis: the label of the horizontal axis.
        figures: a variant's name -> position on the horizontal axis -> seconds, shown as
            milliseconds.
        path: the SVG file to write.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 4), layout="constrained")
        figure.suptitle(title, weight="bold")
        axes = figure.subplots()
        for name, by_column in figures.items():
            columns, seconds = zip(*by_column.items(), strict=True)
            axes.plot(columns, [value * 1e3 for value in seconds], marker="o", label=name)
        axes.set_xlabel(axis)
        axes.set_ylabel("ms")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", color="#dddddd")
        axes.legend(frameon=False)
        save(figure, path)


def draw_scatter(
    title: str,
    panels: Mapping[str, Mapping[str, tuple[float, float]]],
    ours: Collection[str],
    path: Path,
) -> None:
    """Write a point for each way in each panel; the vertical axis is logarithmic and shared.

    Args:
        title: the quantity of the vertical axis.
        panels: the label of a horizontal axis -> a way's name -> its two figures.
        ours: the names of this project's ways, which have another colour and marker.
        path: the SVG file to write.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 4.5), layout="constrained")
        figure.suptitle(title, weight="bold")
        all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (label, points) in zip(all_axes, panels.items(), strict=True):
            above = float("inf")
            for name, (x, y) in sorted(points.items(), key=lambda point: -point[1][1]):
                is_ours = name in ours
                colour = COLOURS["vision"] if is_ours else COLOURS["prefill"]
                axes.plot([x], [y], "o" if is_ours else "s", color=colour)
                # The label of a point close below another stands under its point.
                place = (5, 3) if above > CLOSE * y else (5, -9)
                axes.annotate(name, (x, y), xytext=place, textcoords="offset points", fontsize=7)
                above = y
            axes.set_xlabel(label)
            axes.set_yscale("log")
            axes.set_xlim(left=0)
            axes.margins(x=0.25)
            axes.grid(color="#dddddd")
        save(figure, path)


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
