"""Compare one activation scale for a tensor with one for each token, in the vision encoder.

    python benchmarks/vision_granularity.py DIR      # a package with fp32; the built-in one if none

In the float32 graph, the input and the weights of every product are rounded to 8 bits and back, so
that only the rounding differs. The results are the relative error of image_hidden_states against
float32 over the sample pictures, and the time of one product of the third stage with each scaling.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import fastvlm_onnx
from fastvlm_onnx.export.pipeline import export_package
from fastvlm_onnx.export.tensors.quantization import quantize_rows
from fastvlm_onnx.export.verification.metrics import cosine, relative_error
from fastvlm_onnx.names import PIXEL_VALUES
from fastvlm_onnx.package import read_manifest
from fastvlm_onnx.runtime.vision.image import preprocess, read_picture

FloatArray = NDArray[np.float32]

PICTURES = Path(fastvlm_onnx.__file__).parent / "demo/pictures"
TOKENS, WIDTH, FFN_WIDTH = 4096, 384, 1536


def weight_of(node: onnx.NodeProto, weights: dict[str, FloatArray]) -> FloatArray | None:
    """Return the matrix [out, in] of a pointwise convolution or a product, else None."""
    if node.op_type == "MatMul" and node.input[1] in weights:
        return weights[node.input[1]].T
    if node.op_type == "Conv" and weights[node.input[1]].shape[2:] == (1, 1):
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        weight = weights[node.input[1]][:, :, 0, 0]
        # A grouped convolution stays in float32, as in the int8 graph.
        return weight if groups == 1 else None
    return None


def rounded_graph(path: Path, by_token: bool) -> bytes:
    """Return the graph with weights and input of every product rounded to 8 bits."""
    model = onnx.load(path)
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    changed, nodes = {}, []
    for node in model.graph.node:
        matrix = weight_of(node, weights)
        if matrix is not None:
            integers, scales = quantize_rows(np.ascontiguousarray(matrix))
            back = integers * scales[:, None]
            name = node.input[1]
            changed[name] = back.T if node.op_type == "MatMul" else back[:, :, None, None]
            axis = -1 if node.op_type == "MatMul" else 1
            nodes += rounding(node, axis if by_token else None)
        nodes.append(node)
    for tensor in model.graph.initializer:
        if tensor.name in changed:
            array = np.ascontiguousarray(changed[tensor.name], np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    axes = [helper.make_tensor(f"axes{a}", TensorProto.INT64, [1], [a]) for a in (-1, 1)]
    model.graph.initializer.extend(axes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model.SerializeToString()


def rounding(node: onnx.NodeProto, axis: int | None) -> list[onnx.NodeProto]:
    """Round a node's input to 8 bits and back, with a scale for each position along `axis`."""
    x, out = node.input[0], f"{node.output[0]}_rounded"
    made = []
    if axis is not None:
        made += [
            helper.make_node("Abs", [x], [f"{out}_abs"]),
            helper.make_node("ReduceMax", [f"{out}_abs", f"axes{axis}"], [f"{out}_peak"]),
            helper.make_node("Div", [x, f"{out}_peak"], [f"{out}_in"]),
        ]
        x = f"{out}_in"
    parts = [f"{out}_{name}" for name in ("values", "scale", "zero")]
    back = out if axis is None else f"{out}_back"
    made += [
        helper.make_node("DynamicQuantizeLinear", [x], parts),
        helper.make_node("DequantizeLinear", parts, [back]),
    ]
    if axis is not None:
        made.append(helper.make_node("Mul", [back, f"{out}_peak"], [out]))
    node.input[0] = out
    return made


def errors(path: Path, image_size: int) -> dict[str, tuple[float, float]]:
    """Return the worst relative error and cosine over the sample pictures."""
    pixels = [
        preprocess(read_picture(picture), image_size)
        for picture in sorted(PICTURES.iterdir())
        if picture.suffix != ".json"
    ]

    def run(graph: bytes | str) -> list[FloatArray]:
        session = onnxruntime.InferenceSession(graph)
        return [session.run(None, {PIXEL_VALUES: values})[0] for values in pixels]

    exact = run(str(path))
    found = {}
    for name, by_token in (("a tensor", False), ("a token", True)):
        pairs = list(zip(run(rounded_graph(path, by_token)), exact, strict=True))
        found[name] = (
            max(relative_error(a, b) for a, b in pairs),
            min(cosine(a, b) for a, b in pairs),
        )
    return found


def product_ms(by_token: bool) -> float:
    """Return the time of one product of the third stage, with its scales, in milliseconds."""
    rng = np.random.default_rng(0)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [TOKENS, WIDTH])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [TOKENS, FFN_WIDTH])
    weight = rng.integers(-127, 128, (WIDTH, FFN_WIDTH), np.int8)
    scale = np.full(FFN_WIDTH, 1e-3, np.float32)
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(scale, "s")]
    source, out = ("x", "y") if not by_token else ("scaled", "product")
    product = helper.make_node(
        "DynamicQuantizeMatMul", [source, "w", "s"], [out], domain="com.microsoft"
    )
    nodes = [product]
    if by_token:
        constants.append(helper.make_tensor("axes", TensorProto.INT64, [1], [-1]))
        nodes = [
            helper.make_node("Abs", ["x"], ["abs"]),
            helper.make_node("ReduceMax", ["abs", "axes"], ["peak"]),
            helper.make_node("Div", ["x", "peak"], ["scaled"]),
            product,
            helper.make_node("Mul", ["product", "peak"], ["y"]),
        ]
    graph = helper.make_graph(nodes, "product", [x], [y], constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    feeds = {"x": rng.standard_normal((TOKENS, WIDTH), np.float32)}
    return 1e3 * seconds_of(lambda: session.run(None, feeds))


def seconds_of(run: Callable[[], object]) -> float:
    times = []
    for _ in range(30):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return median(times[5:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", nargs="?", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        package = args.package or Path(folder) / "demo-onnx"
        if args.package is None:
            export_package("demo", package)
        manifest = read_manifest(package)
        size = manifest.image.default_size
        file = manifest.variants["fp32"].vision_encoder[str(size)]
        print("| one scale for | relative error | cosine |\n|---|---|---|")
        for name, (error, similarity) in errors(package / file, size).items():
            print(f"| {name} | {error:.4f} | {similarity:.5f} |")
    tensor, token = product_ms(False), product_ms(True)
    print(f"\n{TOKENS} x {WIDTH} x {FFN_WIDTH}: {tensor:.2f} ms a tensor, {token:.2f} ms a token")


if __name__ == "__main__":
    main()
