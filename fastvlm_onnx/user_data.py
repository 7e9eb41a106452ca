"""Folders that outlive a command: the last export, the exported built-in model, the cache."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from fastvlm_onnx.errors import InputError

MODEL_VARIABLE = "FASTVLM_ONNX_MODEL"
HOME_VARIABLE = "FASTVLM_ONNX_HOME"


@dataclass(frozen=True)
class DefaultModel:
    """The package that is taken when the user names none.

    Attributes:
        folder: the package's folder; None for the built-in model.
        reason: why this package was chosen.
    """

    folder: Path | None
    reason: str


def user_folder() -> Path:
    """Return `$FASTVLM_ONNX_HOME`, or this user's folder for application data."""
    if home := os.environ.get(HOME_VARIABLE):
        return Path(home)
    import click  # only commands need the folder; importing the library does not

    return Path(click.get_app_dir("fastvlm-onnx"))


def cache_folder() -> Path:
    """Return `$FASTVLM_ONNX_HOME/cache`, or this library's folder in the user's cache folder.

    Everything in it can be made again.
    """
    if home := os.environ.get(HOME_VARIABLE):
        return Path(home) / "cache"
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        parent = Path(local) if local else _home() / "AppData" / "Local"
        return parent / "fastvlm-onnx" / "Cache"
    if sys.platform == "darwin":
        return _home() / "Library" / "Caches" / "fastvlm-onnx"
    named = os.environ.get("XDG_CACHE_HOME")
    return (Path(named) if named else _home() / ".cache") / "fastvlm-onnx"


def _home() -> Path:
    """Return this user's home.

    Raises:
        InputError: the user has none, as in a container with a user that has no name.
    """
    try:
        return Path.home()
    except RuntimeError:
        raise InputError(
            f"this user has no home folder; set ${HOME_VARIABLE} to a folder for the cache."
        ) from None


def demo_package(version: str) -> Path:
    """Return the folder of the exported built-in model. Each version has its own."""
    return user_folder() / f"demo-{version}"


def remember_export(folder: Path) -> None:
    """Make the folder the default package. A failure to write it down is ignored."""
    try:
        user_folder().mkdir(parents=True, exist_ok=True)
        _last_export_file().write_text(f"{folder}\n", encoding="utf-8")
    except OSError:
        pass


def default_model() -> DefaultModel:
    """Choose the environment's package, else an existing last export, else the built-in model."""
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
