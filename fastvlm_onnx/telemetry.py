"""ONNX Runtime's telemetry, switched off.

The onnxruntime wheels from 1.29 on report model, session and error events to Microsoft by default
on Linux and macOS. ONNX Runtime reads the variable when it is first imported.
"""

import os
from typing import Final

TELEMETRY_VARIABLE: Final = "ORT_DISABLE_TELEMETRY"


def disable_telemetry() -> None:
    """Switch ONNX Runtime's telemetry off, unless the user has set the variable."""
    os.environ.setdefault(TELEMETRY_VARIABLE, "1")
