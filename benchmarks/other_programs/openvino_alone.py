"""OpenVINO alone, as in examples/openvino_only.py; benchmarks/clients.py runs it."""

import sys
from pathlib import Path

from measured import Answer, measure

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
from openvino_only import PortableModel, open_with_openvino


def load(package: Path, variant: str) -> Answer:
    """Open a variant."""
    return PortableModel(package, variant, open_with_openvino).token_ids


if __name__ == "__main__":
    measure(load)
