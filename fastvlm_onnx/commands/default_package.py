"""The package that a command opens when the user names none."""

from pathlib import Path

import fastvlm_onnx
from fastvlm_onnx.commands.export import export_with_progress
from fastvlm_onnx.console import say
from fastvlm_onnx.user_data import default_model, demo_package


def package_or_default(package: str | None) -> str:
    """Return the package that the user names, else the default package.

    The default is printed on stderr. The built-in model is exported if it is the default.

    Returns:
        A folder or a hub id; $FASTVLM_ONNX_MODEL may be either.
    """
    if package is not None:
        return package
    chosen = default_model()
    folder = chosen.folder or demo_package(fastvlm_onnx.__version__)
    say(f"model: {folder} ({chosen.reason})")
    if chosen.folder is None:
        export_demo_once(folder)
    return str(folder)


def export_demo_once(folder: Path) -> None:
    """Export the built-in model, unless the folder exists."""
    if not folder.is_dir():
        export_with_progress("demo", folder, golden=False)
