"""The rooms of the package and which room may import which.

A room is a folder of export/ or runtime/, or a file at their top level. Six more rooms are in
fastvlm_onnx/: the command line, its commands, the HTTP server, captions on Ray, the public names,
and the modules that all sides share. `tests/test_architecture.py` holds the source to this table,
and `docs/draw_architecture.py` draws it.
"""

# Every room may also import `shared`, which imports no other room.
ALLOWED: dict[str, set[str]] = {
    # fastvlm_onnx/
    "cli": {"commands", "fastvlm_onnx"},
    "commands": {
        "fastvlm_onnx",
        "export.checkpoint",
        "export.layouts",
        "export.pipeline",
        "export.sources",
        "export.verification",
        "ray",
        "runtime.answering",
        "runtime.bench",
        "runtime.captions",
        "runtime.engine",
        "runtime.golden",
        "runtime.hub",
        "runtime.loading",
        "runtime.model",
        "runtime.ort",
        "runtime.serving",
        "runtime.text",
        "runtime.vision",
        "server",
    },
    "ray": {"runtime.captions", "runtime.loading"},
    "server": {
        "runtime.answering",
        "runtime.engine",
        "runtime.model",
        "runtime.serving",
        "runtime.structured",
        "runtime.text",
        "runtime.vision",
    },
    "fastvlm_onnx": {
        "runtime.answering",
        "runtime.engine",
        "runtime.loading",
        "runtime.model",
        "runtime.ort",
        "runtime.serving",
        "runtime.vision",
    },
    "shared": set(),
    # export/: checkpoint -> package
    "export": {
        "export.checkpoint",
        "export.pipeline",
        "export.sources",
        "export.verification",
    },
    "export.pipeline": {
        "export.architecture",
        "export.calibration",
        "export.checkpoint",
        "export.disk",
        "export.layouts",
        "export.sources",
        "export.variants",
        "export.writing",
        "runtime.golden",
    },
    "export.layouts": {
        "export.architecture",
        "export.checkpoint",
        "export.disk",
        "export.graphs",
        "export.sources",
        "export.tensors",
        "export.variants",
        "export.writing",
    },
    "export.verification": {
        "export.architecture",
        "export.checkpoint",
        "export.sources",
        "runtime.loading",
        "runtime.model",
        "runtime.ort",
        "runtime.text",
        "runtime.vision",
    },
    "export.calibration": {
        "export.architecture",
        "export.checkpoint",
        "export.graphs",
        "export.tensors",
        "runtime.ort",
        "runtime.text",
        "runtime.vision",
    },
    "export.variants": {
        "export.architecture",
        "export.checkpoint",
        "export.graphs",
        "export.tensors",
        "export.writing",
    },
    "export.sources": {"export.checkpoint", "export.disk"},
    "export.writing": {"export.tensors"},
    "export.checkpoint": {"export.architecture", "export.disk", "export.tensors"},
    "export.graphs": {"export.architecture", "export.tensors"},
    "export.architecture": set(),
    "export.disk": set(),
    "export.tensors": set(),
    # runtime/: package -> answers
    "runtime.bench": {"runtime.answering", "runtime.loading", "runtime.ort"},
    "runtime.golden": {
        "runtime.answering",
        "runtime.arrays",
        "runtime.engine",
        "runtime.loading",
        "runtime.model",
        "runtime.ort",
        "runtime.text",
        "runtime.vision",
    },
    "runtime.captions": {
        "runtime.answering",
        "runtime.engine",
        "runtime.model",
        "runtime.text",
        "runtime.vision",
    },
    "runtime.loading": {
        "runtime.arrays",
        "runtime.hub",
        "runtime.model",
        "runtime.ort",
        "runtime.text",
        "runtime.vision",
    },
    "runtime.model": {
        "runtime.answering",
        "runtime.engine",
        "runtime.ort",
        "runtime.structured",
        "runtime.text",
        "runtime.vision",
    },
    "runtime.serving": {
        "runtime.answering",
        "runtime.engine",
        "runtime.model",
        "runtime.text",
        "runtime.vision",
    },
    "runtime.answering": {
        "runtime.arrays",
        "runtime.engine",
        "runtime.structured",
        "runtime.text",
        "runtime.vision",
    },
    "runtime.structured": {"runtime.engine", "runtime.text"},
    "runtime.engine": {"runtime.arrays", "runtime.ort"},
    "runtime.vision": {"runtime.arrays", "runtime.ort"},
    "runtime.text": set(),
    "runtime.ort": set(),
    "runtime.hub": set(),
    "runtime.arrays": set(),
}

CLI_MODULES = {"__main__", "cli", "optimum_command", "optimum_register"}


def room_of(module: str) -> str:
    """The room of a module, given the module's import name.

    >>> room_of("fastvlm_onnx.runtime.engine.kv_cache")
    'runtime.engine'
    >>> room_of("fastvlm_onnx.package")
    'shared'
    """
    _, *parts = module.split(".")
    if not parts:
        return "fastvlm_onnx"
    if parts[0] in ("export", "runtime"):
        return ".".join(parts[:2])
    if parts[0] in CLI_MODULES:
        return "cli"
    return parts[0] if parts[0] in ("commands", "ray", "server") else "shared"
