"""Run every graph of a folder that has inputs beside it, as the runtime opens it on the CPU.

    python run_graphs.py DIR       # NAME.onnx with NAME.inputs.npz -> NAME.outputs.npz

A process of its own, so that it can run on an emulated processor.
"""

import sys
from pathlib import Path

import numpy as np

from fastvlm_onnx.runtime.ort.provider_selection import ProviderChoice
from fastvlm_onnx.runtime.ort.providers import CPU
from fastvlm_onnx.runtime.ort.session import GraphSession

for graph in sorted(Path(sys.argv[1]).glob("*.onnx")):
    inputs = graph.with_suffix(".inputs.npz")
    if inputs.exists():
        has_int8_products = graph.name.endswith(".int8.onnx")
        session = GraphSession(graph, ProviderChoice(CPU), has_int8_products=has_int8_products)
        names = [output.name for output in session.get_outputs()]
        outputs = session.run(names, dict(np.load(inputs)))
        np.savez(graph.with_suffix(".outputs.npz"), **dict(zip(names, outputs, strict=True)))
