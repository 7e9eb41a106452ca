"""Draw docs/architecture.svg, the rooms and their imports, from the table in tests/rooms.py.

    python docs/draw_architecture.py

The table is also written into the picture's metadata, so that a test can tell an old picture.
"""

import json
import sys
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from rooms import ALLOWED  # noqa: E402

Point = tuple[float, float]

# Width of a column and height of a floor, in the picture's own units.
COLUMN, FLOOR = 2.9, 1.3
BOX_WIDTH, BOX_HEIGHT = 2.6, 0.6
COLOURS = {"export": "#fde3c8", "runtime": "#d3e4f5", "face": "#e3e3e3"}


def longest_paths(edges: dict[str, set[str]]) -> dict[str, int]:
    """The floor of each room: 0 for a room that imports none, else one above the highest import."""
    floors: dict[str, int] = {}

    def floor(room: str) -> int:
        if room not in floors:
            floors[room] = 1 + max((floor(target) for target in edges[room]), default=-1)
        return floors[room]

    for room in edges:
        floor(room)
    return floors


def is_implied(room: str, target: str, edges: dict[str, set[str]]) -> bool:
    """Whether the target can also be reached through another room."""
    waiting, seen = list(edges[room] - {target}), set[str]()
    while waiting:
        for following in edges[waiting.pop()] - seen:
            seen.add(following)
            waiting.append(following)
    return target in seen


def side_of(room: str) -> str:
    side = room.split(".")[0]
    return side if side in ("export", "runtime") else "face"


def places(edges: dict[str, set[str]]) -> dict[str, Point]:
    """The centre of each room's box: export left, runtime right, the face on top."""
    floors = longest_paths(edges)
    rows: dict[tuple[str, int], list[str]] = {}
    for room in sorted(edges):
        rows.setdefault((side_of(room), floors[room]), []).append(room)
    centres = {"export": 0.0, "runtime": 4 * COLUMN, "face": 2 * COLUMN}
    found = {}
    for (side, floor), names in rows.items():
        for number, name in enumerate(names):
            # Every second floor is moved sideways, so that arrows pass beside the boxes.
            shift = 0.35 * (-1) ** floor
            x = centres[side] + COLUMN * (number - (len(names) - 1) / 2) + shift
            found[name] = (x, FLOOR * floor)
    found["shared"] = (2 * COLUMN, -FLOOR)
    return found


def draw_arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], dark: bool
) -> None:
    axes.annotate(
        "",
        xy=(end[0], end[1] + BOX_HEIGHT / 2),
        xytext=(start[0], start[1] - BOX_HEIGHT / 2),
        arrowprops={
            "arrowstyle": "-|>",
            "color": "#333333" if dark else "#c4c4c4",
            "linewidth": 1.2 if dark else 0.7,
            "zorder": 2 if dark else 1,
        },
    )


def draw(edges: dict[str, set[str]], path: Path) -> None:
    """Write the picture of the rooms as SVG, the same bytes for the same table."""
    matplotlib.rcParams.update({"svg.hashsalt": "rooms", "svg.fonttype": "none", "font.size": 10})
    centres = places(edges)
    figure = Figure(figsize=(16, 12))
    axes = figure.subplots()
    for room in sorted(edges):
        for target in sorted(edges[room]):
            draw_arrow(axes, centres[room], centres[target], not is_implied(room, target, edges))
    for room, (x, y) in centres.items():
        width = BOX_WIDTH * (5 if room == "shared" else 1)
        corner = (x - width / 2, y - BOX_HEIGHT / 2)
        colour = COLOURS[side_of(room)]
        axes.add_patch(
            Rectangle(corner, width, BOX_HEIGHT, facecolor=colour, edgecolor="#555555", zorder=3)
        )
        label = "shared (every room may import it)" if room == "shared" else room
        axes.text(x, y, label, ha="center", va="center", zorder=4)
    axes.autoscale_view()
    axes.set_aspect("equal")
    axes.axis("off")
    table = {room: sorted(targets) for room, targets in edges.items()}
    metadata = {"Date": None, "Creator": None, "Description": json.dumps(table)}
    figure.savefig(path, bbox_inches="tight", metadata=metadata)


if __name__ == "__main__":
    draw(ALLOWED, ROOT / "docs" / "architecture.svg")
