"""Write the results of a search as a page and as JSON."""

import json
from pathlib import Path
from typing import Any

HEADER = "| row | same first choice | KL mean | 99th percentile | largest | bytes |\n"
HEADER += "|---|---|---|---|---|---|\n"


def write_report(results: Path, output: Path) -> None:
    rows: dict[str, dict[str, Any]] = {}
    for line in results.read_text().splitlines():
        row = json.loads(line)
        if "same" in row:
            rows[row["name"]] = row
    text = INTRODUCTION
    for kind, title in TITLES.items():
        own = sorted(
            (row for name, row in rows.items() if name.startswith(kind)),
            key=lambda row: row["kl_mean"],
        )
        if not own:
            continue
        text += f"\n## {title}\n\n" + HEADER
        for row in own:
            name = row["name"].removeprefix(f"{kind} ")
            size = "" if kind == "peer:" else f"{row['extra_bytes'] / 1e6:+.1f} MB"
            text += (
                f"| {name} | {row['same']:.2%} | {row['kl_mean']:.2e} | {row['kl_p99']:.2e} "
                f"| {row['kl_largest']:.2g} | {size} |\n"
            )
    output.mkdir(parents=True, exist_ok=True)
    (output / "quantisation-search.md").write_text(text, encoding="utf-8")
    (output / "quantisation-search.json").write_text(json.dumps(list(rows.values()), indent=1))


TITLES = {
    "int4:": "int4",
    "fast:": "fast: int8 for the prompt up to its last token, int4 from there on",
    "int8:": "int8",
    "peer:": "Rounding of other projects",
}
INTRODUCTION = """# Search for the rounding of int4, int8 and fast

Qwen2.5-Coder-0.5B-Instruct has the sizes of FastVLM-0.5B's decoder. 200 prompts in six languages,
48 steps, float32's own greedy answers forced; steps after an end token do not count. Weights and
inputs of products are rounded in PyTorch as the row says, everything else is float32
(`python benchmarks/quantisation_search.py`). Bytes are relative to the variant of 0.2.0.
"""
