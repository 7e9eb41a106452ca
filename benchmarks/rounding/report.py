"""Write the results of a search as a page and as JSON."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

TITLES: Final = {
    "int4:": "int4",
    "fast:": "fast: int8 for the prompt up to its last token, int4 from there on",
    "int8:": "int8",
    "peer:": "Rounding of other projects",
}
HEADER: Final = """\
| row | same first choice | KL mean | 99th percentile | largest | English: same | KL mean | bytes |
|---|---|---|---|---|---|---|---|
"""
INTRODUCTION: Final = """# Search for the rounding of int4, int8 and fast

Qwen2.5-Coder-0.5B-Instruct has the sizes of FastVLM-0.5B's decoder. float32's own greedy answers of
at most 48 tokens are forced on each way to round, and the next tokens' distributions are compared:
200 prompts in six languages, 7,726 tokens. Weights and inputs of products are rounded in PyTorch as
the row says, everything else is float32 (`python benchmarks/quantisation_search.py`). Bytes are
relative to the row "as today", which rounds without calibration. No calibration text is a prompt.

- GPTQ: damping 0.05 of each column's own diagonal, columns of the largest inputs first, scales of
  blocks found before, 64 texts in chat form, each product on the outputs of the rounded products
  before it. A number is the block size; the attention of the first four layers is int8.
- alone: everything that the row does not name is float32. Only lm_head's input is int8 in blocks of
  128, where the row does not say otherwise.
- groups N: the columns of an input, sorted by their largest magnitude in calibration, in N groups
  with a scale each for every token. split, tiers: groups of other widths. keep N: N columns stay
  float32.
- lm_head 15 bits: its input is the sum of two int8 rows; simulated in float32.
- exported, int8: the transforms, the 16 tokens of lm_head and the calibration of version 0.2.
  exact: in float32. blocks of N: Hadamard blocks. balanced: channels, or blocks of the residual
  stream, are scaled so that inputs and weights are of one size; 0.35 is a share of that. sorted
  stream: its blocks hold channels of a similar size.
- exported, int4: attention is int8 in every layer, the rest int4 in blocks of 128, damping 0.2 in
  down projections. int8 weights are calibrated where the row does not say "to nearest".
- target residual: each weight also makes up for what the rounded products before it have changed;
  half and 0.7 are shares of that. Where two dampings are named, the second is that of the down
  projections.
- own answers: the float32 model's, to the first half of each text. swapped: the second half of a
  text asks, and the first half answers. pairs: conversations of two texts.

Rows with "exported" ran on an NVIDIA H100 (PyTorch 2.11, 2026-11-26). The rows of single layers are
in [quantisation-search.json](quantisation-search.json) alone: no layer stands out.
"""
# A row that changes one layer alone.
ONE_LAYER = re.compile(r"layer \d+")


def write_report(results: Path, output: Path, subset: Path | None = None) -> None:
    """Write quantisation-search.md and .json.

    Args:
        results: rows of all prompts, as `search` writes them.
        output: the folder.
        subset: rows of a part of the prompts, for a section of their own.
    """
    rows = read_rows(results)
    text = INTRODUCTION
    for kind, title in TITLES.items():
        own = {
            name.removeprefix(f"{kind} "): x
            for name, x in rows.items()
            if kind in name[:5] and not ONE_LAYER.search(name)
        }
        if own:
            text += f"\n## {title}\n\n{table(own)}"
    written = {"all prompts": list(rows.values())}
    if subset:
        some = read_rows(subset)
        text += f"\n## On 12 of the 200 prompts, one thread of a CPU\n\n{table(some)}"
        written["12 prompts"] = list(some.values())
    output.mkdir(parents=True, exist_ok=True)
    (output / "quantisation-search.md").write_text(text, encoding="utf-8")
    (output / "quantisation-search.json").write_text(json.dumps(written, indent=1) + "\n")


def read_rows(results: Path) -> dict[str, dict[str, Any]]:
    found = [json.loads(line) for line in results.read_text().splitlines()]
    return {row["name"].removeprefix("cpu "): row for row in found if "same" in row}


def table(rows: Mapping[str, dict[str, Any]]) -> str:
    """Return a table, the smallest mean divergence first."""
    ordered = sorted(rows.items(), key=lambda item: item[1]["kl_mean"])
    return HEADER + "".join(f"| {' | '.join(cells(name, row))} |\n" for name, row in ordered)


def cells(name: str, row: dict[str, Any]) -> Iterable[str]:
    english = "same_english" in row
    return (
        name,
        f"{row['same']:.2%}",
        f"{row['kl_mean']:.2e}",
        f"{row['kl_p99']:.2e}",
        f"{row['kl_largest']:.2g}",
        f"{row['same_english']:.2%}" if english else "",
        f"{row['kl_mean_english']:.2e}" if english else "",
        "" if name.startswith("peer:") else f"{row['extra_bytes'] / 1e6:+.1f} MB",
    )
