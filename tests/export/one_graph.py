"""A graph of one input x: weights from arrays, and a run in ONNX Runtime."""

from pathlib import Path

import numpy as np
import onnx_ir as ir

from fastvlm_onnx.export.graphs.layers import Graph
from fastvlm_onnx.export.tensors.lazy_array import FloatArray, LazyArray
from fastvlm_onnx.runtime.ort.provider_selection import ProviderChoice
from fastvlm_onnx.runtime.ort.providers import CPU
from fastvlm_onnx.runtime.ort.session import GraphSession


def lazy(values: FloatArray) -> LazyArray:
    return LazyArray(values.shape, lambda: values, lambda start, stop: values[start:stop])


def run(graph: Graph, folder: Path, x: FloatArray) -> list[np.ndarray]:
    path = folder / "graph.onnx"
    ir.save(graph.finish(), path)
    return GraphSession(path, ProviderChoice(CPU), has_int8_products=True).run(None, {"x": x})
