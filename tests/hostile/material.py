"""Good files that cases damage: a package, a checkpoint, pictures."""

import io
import json
import os
import shutil
import sys
import zipfile
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image

import fastvlm_onnx
from fastvlm_onnx.package_files import describe_file

DEMO = Path(fastvlm_onnx.__file__).parent / "demo"


@dataclass(frozen=True)
class Material:
    """Folders on the disk that cases stand on, so that files can be linked instead of copied.

    Attributes:
        package: the built-in model, exported.
        checkpoint: its checkpoint in Apple's layout.
        native: the same in transformers' own layout.
        zipped: a zip of `checkpoint`.
        pictures: a file name's suffix and the content of each picture.
    """

    package: Path
    checkpoint: Path
    native: Path
    zipped: Path
    pictures: tuple[tuple[str, bytes], ...]

    @classmethod
    def found(cls, folder: Path) -> "Material":
        """The material that `make_material` made."""
        return cls(
            folder / "package",
            folder / "checkpoint",
            folder / "native",
            folder / "checkpoint.zip",
            _pictures(),
        )

    def linked(self, folder: Path, to: Path) -> Path:
        """Make a folder of hard links to the files of a good folder."""
        to.mkdir()
        for file in folder.iterdir():
            os.link(file, to / file.name)
        return to


def make_material(folder: Path) -> None:
    """Export the built-in model, and copy its checkpoint, into `folder`."""
    from fastvlm_onnx.export.pipeline import export_package

    package, checkpoint = folder / "package", folder / "checkpoint"
    export_package("demo", package)
    shutil.copytree(DEMO / "checkpoint", checkpoint)
    # A chat template is read in this layout only.
    imported("native_checkpoint").write_native_checkpoint(checkpoint, folder / "native")
    zipped = folder / "checkpoint.zip"
    with zipfile.ZipFile(zipped, "w") as archive:
        for file in sorted(checkpoint.iterdir()):
            archive.write(file, file.name)


def imported(name: str) -> Any:
    """Import a module that the tests of the export side share."""
    folder = str(Path(__file__).resolve().parents[1] / "export")
    sys.path.insert(0, folder)
    try:
        return import_module(name)
    finally:
        sys.path.remove(folder)


def replace(path: Path, content: bytes) -> None:
    """Put a new file in the place of a link, so that the linked file stays as it is."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def describe_truly(package: Path, name: str) -> None:
    """Write a file's size and hash into the manifest, as a package's maker can."""
    path = package / "fastvlm.json"
    manifest = json.loads(path.read_text("utf-8"))
    entry = describe_file(package / name)
    manifest["files"][name] = {"bytes": entry.bytes, "sha256": entry.sha256}
    replace(path, json.dumps(manifest).encode())


def _pictures() -> tuple[tuple[str, bytes], ...]:
    """The same small image in each format, by the file name's suffix."""
    image = Image.effect_noise((40, 30), 60).convert("RGB")
    found = []
    for suffix, options in (
        ("png", {}),
        ("jpg", {}),
        ("jpg", {"progressive": True}),
        ("gif", {}),
        ("bmp", {}),
        ("ppm", {}),
        ("webp", {}),
        ("webp", {"lossless": True}),
        ("tiff", {}),
        ("tiff", {"compression": "tiff_lzw"}),
        ("tiff", {"compression": "tiff_deflate"}),
        ("tiff", {"compression": "packbits"}),
    ):
        content = io.BytesIO()
        kind = {"jpg": "JPEG"}.get(suffix, suffix.upper())
        image.save(content, kind, **options)
        found.append((suffix, content.getvalue()))
    for mode in ("1", "L", "P", "LA", "RGBA", "I;16"):
        content = io.BytesIO()
        made = image.convert(mode) if mode != "I;16" else image.convert("I").convert("I;16")
        made.save(content, "PNG")
        found.append(("png", content.getvalue()))
    return tuple(found)
