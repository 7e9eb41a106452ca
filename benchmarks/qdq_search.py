"""Search for a vision encoder in QDQ form: error and time of each choice on OpenVINO's plugin.

    python benchmarks/qdq_search.py measure CHECKPOINT 1024 -o rows.json --peer nncf.onnx
    python benchmarks/qdq_search.py report rows.json -o docs/benchmarks

`measure` needs onnxruntime-ep-openvino. The error is that of image_hidden_states against the
float32 graph on the CPU, over a noise picture that no row is calibrated on and the sample pictures.
Each row takes turns with the peer's graph, so that a row's ratio does not depend on the machine's
state. Rows are added to the file as they are measured.
"""

import argparse
import json
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from peers.pictures import draw_picture
from peers.plot import draw_scatter

from fastvlm_onnx.export.architecture.tensor_names import VISION_PREFIX
from fastvlm_onnx.export.graphs.qdq import (
    POSITION_AXES,
    ActivationRange,
    equalized_range,
    fold_factors,
    foldable_products,
    products_of,
    quantize_products,
)
from fastvlm_onnx.export.graphs.vision_encoder_qdq import build_vision_encoder_float
from fastvlm_onnx.export.sources.open_checkpoint import open_checkpoint
from fastvlm_onnx.export.tensors.weights import Weights
from fastvlm_onnx.export.verification.metrics import relative_error
from fastvlm_onnx.names import BATCH_SIZE, PIXEL_VALUES
from fastvlm_onnx.runtime.vision.image import preprocess, read_picture
from fastvlm_onnx.samples import SAMPLE_PICTURES

Array = NDArray[np.float32]
EP = "OpenVINOExecutionProvider"
RUNS = 6
# All activations of a full-size graph at once take several GB.
OUTPUTS_OF_A_RUN = 40
TITLE = "relative error of image_hidden_states"
PEER = "nncf's defaults"


@dataclass(frozen=True)
class Row:
    """One choice: the products' names as a pattern, the ranges, and whether channels are equalised.

    Attributes:
        method: "min-max", "mse", or a percentile such as "p99.99".
        pictures: how many calibration pictures are used; None for all.
    """

    label: str
    products: str
    method: str = "min-max"
    is_equalized: bool = False
    pictures: int | None = None


BLOCKS = r"\.(fc1|fc2|qkv|proj)\.weight$"
POINTWISE = BLOCKS + r"|pointwise\.weight|patch_embed\.2"
ROWS = (
    Row("blocks, equalised, min-max", BLOCKS, is_equalized=True),
    Row("blocks, equalised, mse", BLOCKS, "mse", is_equalized=True),
    Row("blocks, min-max", BLOCKS),
    Row("blocks, mse", BLOCKS, "mse"),
    Row("pointwise, min-max", POINTWISE),
    Row("pointwise, mse", POINTWISE, "mse"),
    Row("pointwise, p99.99", POINTWISE, "p99.99"),
    Row("pointwise, min-max, 1 picture", POINTWISE, pictures=1),
    Row("pointwise and depthwise 7x7", POINTWISE + r"|convffn\.conv", "mse"),
    Row("all but stem and last layer", POINTWISE + r"|convffn\.conv|mixer\.weight|even|odd", "mse"),
    Row("fc1 and fc2 alone", r"fc1|fc2", "mse"),
    Row("fc1 alone", "fc1", "mse"),
    Row("fc2 alone", "fc2", "mse"),
    Row("layers between stages alone", "pointwise", "mse"),
    *(Row(f"stage {i + 1} alone", rf"network\.{n}\..*{BLOCKS}", "mse")
      for i, n in enumerate((0, 2, 4, 7, 10))),
)  # fmt: skip


def measure(checkpoint_path: Path, size: int, peer: Path | None, output: Path) -> None:
    """Measure the rows that the file does not hold."""
    rows = json.loads(output.read_text()) if output.exists() else []
    checkpoint = open_checkpoint(checkpoint_path)

    def build() -> ir.Model:
        scope = Weights(checkpoint.tensors) / VISION_PREFIX.rstrip(".")
        return build_vision_encoder_float(scope, checkpoint.config.vision, size)

    samples = sorted(p for p in SAMPLE_PICTURES.iterdir() if p.suffix != ".json")
    shown = {p.name: preprocess(read_picture(p), size) for p in samples}
    calibration = [draw_picture(size, seed) for seed in range(1, 4)] + list(shown.values())[:3]
    pictures = {"noise": draw_picture(size, 0)} | shown
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        save(build(), path)
        exact = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        expected = {n: exact.run(None, {PIXEL_VALUES: x})[0] for n, x in pictures.items()}
        del exact
        recorded = record(build(), path, calibration)
        base = open_on_plugin(peer) if peer else None

        def add(label: str, graph: Path) -> None:
            session = open_on_plugin(graph)
            found = {n: session.run(None, {PIXEL_VALUES: x})[0] for n, x in pictures.items()}
            times = take_turns([session, *([base] if base else [])], pictures["noise"])
            errors = {n: float(relative_error(found[n], expected[n])) for n in pictures}
            rows.append({"label": label, "seconds": times, "errors": errors})
            print(label, times, errors, flush=True)
            output.write_text(json.dumps(rows, indent=1) + "\n")

        done = {row["label"] for row in rows}
        save(build(), path)
        if peer and PEER not in done:
            add(PEER, peer)
        if "float32 (bfloat16)" not in done:
            add("float32 (bfloat16)", path)
        for row in ROWS:
            if row.label not in done:
                save(quantized(build(), row, recorded), path)
                add(row.label, path)


def quantized(model: ir.Model, row: Row, recorded: Mapping[str, Sequence[Array]]) -> ir.Model:
    """Return the graph of a row."""
    names = [name for name in products_of(model) if re.search(row.products, name)]
    foldable = foldable_products(model, names) if row.is_equalized else []
    ranges = {}
    for name in names:
        sampled = np.stack(recorded[name][: row.pictures])  # [pictures, positions, channels]
        factors = None
        if name in foldable:
            low, high = (np.minimum(sampled.min((0, 1)), 0), np.maximum(sampled.max((0, 1)), 0))
            factors = equalized_range(low, high).factors
            sampled = sampled / factors
        ranges[name] = ActivationRange(*range_of(sampled, row.method), factors)
    fold_factors(model, foldable, ranges)
    return quantize_products(model, names, ranges)


def range_of(values: Array, method: str) -> tuple[float, float]:
    """Return the lowest and the highest value that uint8 represents."""
    low, high = min(float(values.min()), 0), max(float(values.max()), 0)
    if method.startswith("p"):
        share = float(method[1:])
        low, high = np.percentile(values, [100 - share, share])
        return min(float(low), 0), max(float(high), 0)
    if method == "min-max":
        return low, high
    rng = np.random.default_rng(0)
    drawn = rng.choice(values.ravel(), min(values.size, 100_000), replace=False)

    def error(shares: tuple[float, float]) -> float:
        found = ActivationRange(low * shares[0], high * shares[1])
        rounded = np.clip(np.rint(drawn / found.scale) + float(found.zero_point), 0, 255)
        return float((((rounded - float(found.zero_point)) * found.scale - drawn) ** 2).sum())

    shares = np.linspace(0.3, 1, 15)
    best = min(((a, b) for a in shares for b in shares), key=error)
    return low * best[0], high * best[1]


def record(model: ir.Model, path: Path, pictures: Sequence[Array]) -> dict[str, list[Array]]:
    """Return the products' activations by name, float32 [positions, channels] of each picture.

    Of a large map, every fourth row and column is kept, and the extremes of each channel.
    """
    nodes = products_of(model)
    values = {node.inputs[0].name: node.inputs[0] for node in nodes.values()}
    values.pop(PIXEL_VALUES, None)
    model.graph.outputs.clear()
    for value in values.values():
        value.type = ir.TensorType(ir.DataType.FLOAT)
        model.graph.outputs.append(value)
    save(model, path)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    found: dict[str, list[Array]] = {name: [] for name in nodes}
    for picture in pictures:
        for first in range(0, len(values), OUTPUTS_OF_A_RUN):
            asked = list(values)[first : first + OUTPUTS_OF_A_RUN]
            arrays = dict(zip(asked, session.run(asked, {PIXEL_VALUES: picture}), strict=True))
            for name, node in nodes.items():
                if (x := arrays.get(node.inputs[0].name)) is not None:
                    found[name].append(positions_of(x, node.op_type))
    return found


def positions_of(x: Array, op_type: str) -> Array:
    axes = POSITION_AXES[op_type]
    extremes = [x.min(axes), x.max(axes)]
    kept = x[0, :, ::4, ::4] if x.ndim == 4 and x.shape[2] > 32 else x[0]
    positions = kept.reshape(len(kept), -1).T if op_type == "Conv" else kept
    return np.concatenate([positions, extremes])


def save(model: ir.Model, path: Path) -> None:
    ir.save(model, path, external_data=f"{path.name}.data")


def open_on_plugin(path: Path) -> Any:
    import onnxruntime_ep_openvino as plugin

    if not any(device.ep_name == EP for device in ort.get_ep_devices()):
        ort.register_execution_provider_library("openvino", plugin.get_library_path())
    options = ort.SessionOptions()
    options.add_free_dimension_override_by_name(BATCH_SIZE, 1)
    devices = [device for device in ort.get_ep_devices() if device.ep_name == EP]
    options.add_provider_for_devices(devices, {"num_of_threads": "2"})
    return ort.InferenceSession(path, options)


def take_turns(sessions: Sequence[Any], picture: Array) -> list[float]:
    """Return the least time of each session in seconds."""
    times: list[list[float]] = [[] for _ in sessions]
    for _ in range(RUNS):
        for session, own in zip(sessions, times, strict=True):
            began = time.perf_counter()
            session.run(None, {PIXEL_VALUES: picture})
            own.append(time.perf_counter() - began)
    return list(map(min, times))


def report(rows_file: Path, folder: Path) -> None:
    """Write qdq-search.md, .json and .svg."""
    rows = json.loads(rows_file.read_text())
    heading = "| choice | ms | times nncf's | error, noise | error, sample pictures |"
    lines = [heading, "|---" * 5 + "|"]
    points = {}
    for row in rows:
        own, *peer = row["seconds"]
        noise, *others = row["errors"].values()
        ratio = own / peer[0] if peer else 1
        lines.append(
            f"| {row['label']} | {1e3 * own:.0f} | {ratio:.3f} | {noise:.4f} | "
            f"{min(others):.4f} to {max(others):.4f} |"
        )
        points[row["label"]] = (ratio, noise)
    page = folder / "qdq-search.md"
    if page.exists():  # the text before the table is written by hand
        text = page.read_text("utf-8").split("\n| choice")[0]
    else:
        text = "# Search for a vision encoder in QDQ form\n"
    page.write_text(text + "\n" + "\n".join(lines) + "\n", encoding="utf-8")
    if rows_file != folder / "qdq-search.json":
        (folder / "qdq-search.json").write_text(json.dumps(rows, indent=1) + "\n")
    panels = {"time / time of nncf's graph": points}
    ours = [label for label in points if label != PEER]
    draw_scatter(TITLE, panels, ours, folder / "qdq-search.svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands: Any = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("measure", help="measure the rows")
    run.add_argument("checkpoint", type=Path)
    run.add_argument("size", type=int, help="side of the square input in pixels")
    run.add_argument("--peer", type=Path, help="a graph that every row takes turns with")
    run.add_argument("-o", "--output", type=Path, required=True)
    write = commands.add_parser("report", help="write the page and the plot")
    write.add_argument("rows", type=Path)
    write.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    chosen: Mapping[str, Callable[[], None]] = {
        "measure": lambda: measure(args.checkpoint, args.size, args.peer, args.output),
        "report": lambda: report(args.rows, args.output),
    }
    chosen[args.command]()


if __name__ == "__main__":
    main()
