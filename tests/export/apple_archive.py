"""A checkpoint in a zip like Apple's, and helpers that look into folders."""

import io
import zipfile
from pathlib import Path

NAME = "llava-fastvithd_0.5b_stage3"
PART = f"{NAME}.zip.part"


def apple_archive(checkpoint: Path) -> bytes:
    """Zip a checkpoint in one top folder, with the entries that macOS adds."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as zipped:
        zipped.mkdir(NAME)
        for file in sorted(checkpoint.iterdir()):
            zipped.write(file, f"{NAME}/{file.name}")
            zipped.writestr(f"__MACOSX/{NAME}/._{file.name}", b"\0")
        zipped.writestr(f"{NAME}/._config.json", b"\0")
        zipped.writestr("__MACOSX/notes", b"\0")
    return content.getvalue()


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def zip_of(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return content.getvalue()
