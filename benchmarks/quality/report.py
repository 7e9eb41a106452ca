"""The page, the figures and the plot of a comparison."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peers.plot import draw_scatter
from quality.systems import OURS, PYTORCH, REFERENCE, SYSTEMS

from fastvlm_onnx.agreement import (
    DIVERGENCE_COLUMNS,
    FIRST_CHOICE_COLUMN,
    first_choice_sentence,
)

Figures = Mapping[str, Any]
STEM = "real-language-model"
HEADER = (
    "system",
    FIRST_CHOICE_COLUMN,
    *DIVERGENCE_COLUMNS,
    "perplexity of fp32's answers",
    "perplexity of given texts",
    "language model MB",
    "package MB",
    "ms a token",
)


def write_results(
    output: Path,
    conditions: str,
    systems: Mapping[str, Figures],
    groups: Mapping[str, Mapping[str, Figures]],
    failures: Mapping[str, str],
) -> str:
    """Write the page, the figures and the plot, and return the page.

    Args:
        output: the folder to write into.
        conditions: a paragraph: machine, versions, prompts, steps.
        systems: the figures of each system.
        groups: by kind of prompt and by language: the figures of each system.
        failures: the systems that could not be measured, with the reason.
    """
    output.mkdir(parents=True, exist_ok=True)
    # fp32 and PyTorch differ by rounding alone: a point of theirs would flatten all others.
    exact = (REFERENCE, PYTORCH)
    plotted = {
        name: found
        for name, found in systems.items()
        if found["kl_divergence"] and name not in exact
    }
    is_plotted = any("decode" in found for found in plotted.values())
    if is_plotted:
        _draw(plotted, output / f"{STEM}.svg")
    page = _page(conditions, systems, groups, failures, is_plotted=is_plotted)
    (output / f"{STEM}.md").write_text(page, encoding="utf-8")
    everything = {
        "conditions": conditions,
        "systems": systems,
        "groups": groups,
        "failures": failures,
    }
    text = json.dumps(everything, indent=1, ensure_ascii=False) + "\n"
    (output / f"{STEM}.json").write_text(text, encoding="utf-8")
    return page


def _page(
    conditions: str,
    systems: Mapping[str, Figures],
    groups: Mapping[str, Mapping[str, Figures]],
    failures: Mapping[str, str],
    *,
    is_plotted: bool,
) -> str:
    rows = [
        (
            name,
            _share(found),
            _number(found["kl_divergence"]),
            _number(found["kl_divergence_99"]),
            _number(found["max_kl_divergence"]),
            _decimal(found["answer_perplexity"], 3),
            _decimal(found["text_perplexity"], 2),
            _megabytes(found["language_bytes"]),
            _megabytes(found.get("package_bytes")),
            _milliseconds(found.get("decode")),
        )
        for name, found in systems.items()
    ]
    ours = [name for name in systems if name in OURS and name != REFERENCE]
    sentences = "\n".join(
        f"- {first_choice_sentence(name, found['steps'], found['agreeing_steps'])}"
        for name, found in systems.items()
        if name != REFERENCE
    )
    by_group = [
        (group, str(figures[REFERENCE]["steps"]), *(_change(figures[name]) for name in ours))
        for group, figures in groups.items()
    ]
    reasons = {name: f"; **{failure}**" for name, failure in failures.items()}
    descriptions = "\n".join(
        f"- `{name}`: {SYSTEMS[name].text}{reasons.get(name, '')}" for name in (*systems, *failures)
    )
    picture = f"\n![KL divergence, time and size]({STEM}.svg)\n" if is_plotted else ""
    return f"""# A real language model: what quantisation changes

{conditions}

{_table(HEADER, rows)}

{sentences}
{picture}
## By kind of prompt and by language

KL divergence, mean, and changed first choices in brackets.

{_table(("prompts", "steps", *ours), by_group)}

## Systems

{descriptions}
"""


def _draw(systems: Mapping[str, Figures], path: Path) -> None:
    points = {
        "ms a token": {
            name: (found["decode"]["median"] * 1e3, found["kl_divergence"])
            for name, found in systems.items()
            if "decode" in found
        },
        "language model, MB": {
            name: (found["language_bytes"] / 1e6, found["kl_divergence"])
            for name, found in systems.items()
        },
    }
    ours = [name for name in systems if name in OURS]
    draw_scatter("KL divergence from fp32, mean (log scale)", points, ours, path)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (header, *rows)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


def _share(found: Figures) -> str:
    return f"{100 * found['agreeing_steps'] / found['steps']:.2f} %"


def _change(found: Figures) -> str:
    return f"{_number(found['kl_divergence'])} ({found['steps'] - found['agreeing_steps']})"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}" if value else "0"


def _decimal(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _megabytes(value: int | None) -> str:
    return "" if value is None else f"{value / 1e6:,.0f}"


def _milliseconds(seconds: Mapping[str, float] | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds['median'] * 1e3:.1f} ({seconds['minimum'] * 1e3:.1f})"
