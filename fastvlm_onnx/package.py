"""The exported folder, described by one manifest: read strictly, written last.

A folder with a manifest is whole: export writes into a hidden folder beside the destination, the
manifest at the very end, and renames. Standard library only; neither side of the project is known
here.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from types import UnionType
from typing import Any, get_args, get_origin

from fastvlm_onnx.agreement import VariantAgreement
from fastvlm_onnx.errors import PackageError
from fastvlm_onnx.names import MANIFEST_FILE, TOKENIZER_FILE, scale_file, weights_file

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Source:
    """Where the weights came from: `model_type` and the exporter are facts, `name` is a label."""

    name: str
    model_type: str
    exporter: str
    parameters: int


@dataclass(frozen=True)
class ImageFormat:
    """What a picture is turned into, as Apple's predict.py does it.

    Attributes:
        default_size: side of the square input in pixels.
        patch_size: pixels per image token, on each axis.
        padding: "pad", black borders to a square before resizing.
        resample: "bicubic", Pillow's, on uint8.
        rescale: "1/255"; no mean is subtracted and nothing is divided by a deviation.
    """

    default_size: int
    patch_size: int
    padding: str
    resample: str
    rescale: str


@dataclass(frozen=True)
class PromptFormat:
    """Text around the image and the user's words; each piece is tokenised by itself."""

    before_image: str
    before_prompt: str
    after_prompt: str

    @property
    def system(self) -> str:
        return self.before_image[: self.before_image.rfind("<|im_start|>")]

    @property
    def user(self) -> str:
        return self.before_image[len(self.system) :]

    @property
    def after_image(self) -> str:
        return self.before_prompt

    @property
    def end_of_turn(self) -> str:
        return self.after_prompt[: self.after_prompt.rfind("<|im_start|>")]


@dataclass(frozen=True)
class DecoderFormat:
    """Sizes of the decoder's inputs and outputs; `context_length` counts tokens, image included."""

    hidden_size: int
    num_hidden_layers: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    eos_token_ids: list[int]


@dataclass(frozen=True)
class Variant:
    """One file per graph.

    Attributes:
        vision_encoder: one for each image size (the key, in pixels).
        prefill: runs the prompt up to its last token; the decoder itself, or a graph with the same
            cache and no logits.
    """

    vision_encoder: dict[str, str]
    projector: str
    prefill: str
    decoder: str
    embed_tokens: str


@dataclass(frozen=True)
class FileEntry:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Everything a runtime needs to know of an exported folder.

    Attributes:
        measured: agreement with PyTorch of the variants that were held against it, by precision.
    """

    format_version: int
    source: Source
    image: ImageFormat
    prompt: PromptFormat
    decoder: DecoderFormat
    variants: dict[str, Variant]
    files: dict[str, FileEntry]
    measured: dict[str, VariantAgreement] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the manifest, last of all files and all at once."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"
        unfinished = folder / f"{MANIFEST_FILE}.new"
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(folder / MANIFEST_FILE)

    def files_of(self, precision: str, image_size: int) -> list[str]:
        """Files that one variant needs at one image size, weights and tokenizer included."""
        variant = self.variants[precision]
        encoder = variant.vision_encoder[str(image_size)]
        graphs = (encoder, variant.projector, variant.prefill, variant.decoder)
        embeddings = (variant.embed_tokens, scale_file(variant.embed_tokens))
        wanted = {*graphs, *map(weights_file, graphs), *embeddings, TOKENIZER_FILE}
        return [name for name in self.files if name in wanted]


def read_manifest(folder: Path) -> Manifest:
    """Read and check `fastvlm.json`; the other files are not opened.

    Raises:
        PackageError: no such folder, no manifest, or a manifest that breaks a rule of the format.
    """
    path = folder / MANIFEST_FILE
    if not folder.is_dir():
        raise PackageError(
            f"{folder}: no such folder; expected an exported package. "
            "Make one with `fastvlm-onnx export CHECKPOINT -o DIR`."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PackageError(
            f"{folder}: found no {MANIFEST_FILE}; expected an exported package. If this is a "
            f"checkpoint, run `fastvlm-onnx export {folder} -o DIR` first."
        ) from None
    except (OSError, ValueError) as error:
        raise PackageError(
            f"{path}: cannot be read as JSON ({error}); export the package again."
        ) from None
    if not isinstance(content, dict):
        raise PackageError(f"{path}: found a {type(content).__name__}, expected a JSON object.")
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise PackageError(
            f"{path}: format_version is {version!r}, expected {FORMAT_VERSION}; "
            "export the package again, or install a fastvlm-onnx that knows this format."
        )
    manifest: Manifest = _parse(content, Manifest, "", path)
    _check_references(manifest, path)
    return manifest


def check_files(folder: Path, names: list[str], manifest: Manifest) -> None:
    """Hold files against the size and the SHA-256 that the manifest states.

    Raises:
        PackageError: a file is missing, cut or altered.
    """
    check_sizes(folder, names, manifest)
    check_hashes(folder, names, manifest)


def check_sizes(folder: Path, names: list[str], manifest: Manifest) -> None:
    """Hold files against the size that the manifest states.

    Raises:
        PackageError: a file is missing or cut.
    """
    for name in names:
        entry = manifest.files[name]
        path = folder / name
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise PackageError(
                f"{path}: missing, expected {entry.bytes:,} bytes; "
                "copy or export the package again."
            ) from None
        if size != entry.bytes:
            raise PackageError(
                f"{path}: found {size:,} bytes, expected {entry.bytes:,}; "
                "the file was cut or replaced: copy or export the package again."
            )


def check_hashes(folder: Path, names: list[str], manifest: Manifest) -> None:
    """Hold files against the SHA-256 that the manifest states.

    Raises:
        PackageError: a file is altered, or cannot be read.
    """
    for name in names:
        try:
            found = sha256_of(folder / name)
        except OSError as error:
            raise PackageError(
                f"{folder / name}: cannot be read ({error.strerror}); check its permissions."
            ) from None
        if found != manifest.files[name].sha256:
            raise PackageError(
                f"{folder / name}: sha256 is {found[:12]}…, expected "
                f"{manifest.files[name].sha256[:12]}…; the file was altered: "
                "copy or export the package again."
            )


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_file(path: Path) -> FileEntry:
    """The manifest's entry for a finished file."""
    return FileEntry(os.stat(path).st_size, sha256_of(path))


# --- strict reading ----------------------------------------------------------------------------


def _parse(value: Any, expected: Any, where: str, path: Path) -> Any:
    """Build `expected` (a dataclass, dict, list or plain type) from JSON, naming any misfit."""
    origin = get_origin(expected)
    if hasattr(expected, "__dataclass_fields__"):
        if not isinstance(value, dict):
            raise _misfit(path, where, value, "an object")
        known = {f.name: f.type for f in fields(expected)}
        for key in known:
            if key not in value:
                raise PackageError(
                    f"{path}: {_join(where, key)} is missing; export the package again."
                )
        for key in value:
            if key not in known:
                raise PackageError(
                    f"{path}: {_join(where, key)} is not part of format {FORMAT_VERSION}; "
                    "install a newer fastvlm-onnx, or export the package again."
                )
        return expected(**{k: _parse(value[k], t, _join(where, k), path) for k, t in known.items()})
    if origin is dict:
        if not isinstance(value, dict):
            raise _misfit(path, where, value, "an object")
        return {
            k: _parse(v, get_args(expected)[1], _join(where, k), path) for k, v in value.items()
        }
    if origin is list:
        if not isinstance(value, list):
            raise _misfit(path, where, value, "a list")
        return [
            _parse(v, get_args(expected)[0], _join(where, str(i)), path)
            for i, v in enumerate(value)
        ]
    if origin is UnionType:  # `T | None`
        return None if value is None else _parse(value, get_args(expected)[0], where, path)
    if expected is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if expected is float or type(value) is not expected or (expected is int and value < 0):
        kinds = {"int": "a number >= 0", "float": "a finite number", "str": "a text"}
        raise _misfit(path, where, value, kinds[expected.__name__])
    return value


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _misfit(path: Path, where: str, value: Any, expected: str) -> PackageError:
    return PackageError(
        f"{path}: {where} is {json.dumps(value, ensure_ascii=False)[:60]}, expected {expected}; "
        "export the package again."
    )


def _check_references(manifest: Manifest, path: Path) -> None:
    for name in manifest.files:
        if _leaves_folder(name):
            raise PackageError(
                f"{path}: files.{name} leaves the package's folder; do not trust it."
            )
    if not manifest.variants:
        raise PackageError(f"{path}: variants is empty; export the package again.")
    for precision in manifest.measured:
        if precision not in manifest.variants:
            raise PackageError(
                f"{path}: measured.{precision} is no variant of the package; "
                "export the package again."
            )
    for precision, variant in manifest.variants.items():
        if not variant.vision_encoder:
            raise PackageError(
                f"{path}: variants.{precision}.vision_encoder is empty; export the package again."
            )
        graphs: Mapping[str, str] = {
            **{f"vision_encoder.{k}": v for k, v in variant.vision_encoder.items()},
            "projector": variant.projector,
            "prefill": variant.prefill,
            "decoder": variant.decoder,
            "embed_tokens": variant.embed_tokens,
        }
        for graph, name in graphs.items():
            if name not in manifest.files:
                raise PackageError(
                    f"{path}: variants.{precision}.{graph} names {name!r}, which is not among its "
                    "files; export the package again."
                )


def _leaves_folder(name: str) -> bool:
    pure = PurePosixPath(name)
    return (
        pure.is_absolute()
        or ".." in pure.parts
        or "\\" in name
        or ":" in name
        or len(pure.parts) != 1
    )
