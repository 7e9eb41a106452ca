"""Plots of the benchmarks show the figures that they are drawn from."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from peers.plot import PANELS, draw_bars, draw_lines

BENCHMARKS = Path(__file__).resolve().parent.parent / "docs/benchmarks"


def texts(picture: Path) -> list[str]:
    elements = ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(element.itertext()).strip() for element in elements]


@pytest.mark.parametrize(
    "figures", sorted(BENCHMARKS.glob("side-by-side.*.json")), ids=lambda path: path.stem
)
def test_a_committed_bar_chart_shows_the_figures_beside_it(figures: Path) -> None:
    summaries = json.loads(figures.read_text("utf-8"))["summary"]
    shown = texts(figures.with_suffix(".svg"))
    assert set(summaries) <= set(shown)
    for names in PANELS.values():
        for summary in summaries.values():
            milliseconds = sum(summary[name]["median"] for name in names) * 1e3
            assert f"{milliseconds:.{0 if milliseconds >= 100 else 1}f}" in shown


def test_equal_figures_give_equal_files(tmp_path: Path) -> None:
    summaries = {"a": {n: {"median": 0.1} for n in ("vision", "prefill", "decode")}}
    for name in ("one.svg", "two.svg"):
        draw_bars("title", summaries, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_a_line_chart_names_its_lines_and_axes(tmp_path: Path) -> None:
    draw_lines(
        "cost", "pixels", {"fp32": {256: 0.1, 512: 0.3}, "int8": {256: 0.05}}, tmp_path / "x"
    )
    assert {"cost", "pixels", "ms", "fp32", "int8"} <= set(texts(tmp_path / "x"))
