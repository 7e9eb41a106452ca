"""Folders that outlive a command: the last export, and the built-in model once exported."""

import os
from dataclasses import dataclass
from pathlib import Path

import click

MODEL_VARIABLE = "FASTVLM_ONNX_MODEL"
HOME_VARIABLE = "FASTVLM_ONNX_HOME"


@dataclass(frozen=True)
class DefaultModel:
    """A package nobody named, and why it was chosen; `folder` is None for the built-in model."""

    folder: Path | None
    reason: str


def user_folder() -> Path:
    """`$FASTVLM_ONNX_HOME`, or this user's folder for application data."""
    return Path(os.environ.get(HOME_VARIABLE) or click.get_app_dir("fastvlm-onnx"))


def demo_package(version: str) -> Path:
    """Where the built-in model is kept once exported; another version exports anew."""
    return user_folder() / f"demo-{version}"


def remember_export(folder: Path) -> None:
    """Note the folder as the one `generate` takes by default; a failure to is not an error."""
    try:
        user_folder().mkdir(parents=True, exist_ok=True)
        _last_export_file().write_text(f"{folder}\n", encoding="utf-8")
    except OSError:
        pass


def default_model() -> DefaultModel:
    """The environment's package, else the last export if it still exists, else the built-in one."""
    if named := os.environ.get(MODEL_VARIABLE):
        return DefaultModel(Path(named), f"${MODEL_VARIABLE}")
    try:
        last = Path(_last_export_file().read_text(encoding="utf-8").strip())
    except OSError:
        return DefaultModel(None, "the built-in demo; nothing was exported yet")
    if not last.is_dir():
        return DefaultModel(None, f"the built-in demo; the last export, {last}, is gone")
    return DefaultModel(last, "the last export")


def _last_export_file() -> Path:
    return user_folder() / "last-export"
