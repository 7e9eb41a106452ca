"""The manifest `fastvlm.json` of an exported folder: its schema, reading and writing.

docs/format.md describes the manifest for readers in other languages. A folder with a manifest is
whole: export writes into a hidden folder beside the destination, the manifest last, and then
renames the folder. Standard library only; neither side of the project is known here.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath

from fastvlm_onnx.agreement import VariantAgreement
from fastvlm_onnx.errors import PackageError
from fastvlm_onnx.manifest_reader import parse
from fastvlm_onnx.names import (
    DECODER,
    DECODER_LAYERS,
    LM_HEAD,
    LM_HEAD_SCREEN,
    MANIFEST_FILE,
    PREFILL,
    PROJECTOR,
    TOKENIZER_FILE,
    VISION_ENCODER,
    scale_file,
)
from fastvlm_onnx.second_pass import SecondPass
from fastvlm_onnx.untrusted_files import read_json_object

FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)
LARGEST_MANIFEST = 4_000_000  # bytes; a package with every variant has 60,000
LONGEST_CONTEXT = 1 << 22  # positions; the longest contexts of models are 1 << 20
CPU = "cpu"  # the provider's short name


@dataclass(frozen=True)
class Source:
    """The checkpoint that the weights came from.

    Attributes:
        name: a label for people, such as the checkpoint's folder name.
        model_type: `model_type` of the checkpoint's config.json.
        exporter: the program that wrote the package, with its version.
        parameters: the number of weights in the checkpoint.
    """

    name: str
    model_type: str
    exporter: str
    parameters: int


@dataclass(frozen=True)
class ImageFormat:
    """How an image becomes pixel_values, as in Apple's predict.py.

    Attributes:
        default_size: side of the square input in pixels.
        patch_size: pixels per image token, on each axis.
        padding: "pad", black borders to a square before resizing.
        resample: "bicubic", Pillow's, on uint8.
        rescale: "1/255"; no mean is subtracted and no deviation divides.
    """

    default_size: int
    patch_size: int
    padding: str
    resample: str
    rescale: str


@dataclass(frozen=True)
class PromptFormat:
    """Text around the image and the user's prompt, in the order of a conversation.

    The text of a first turn is system + user, the image, after_image + prompt, and end_of_turn +
    assistant; the answer follows. Each of these three texts is tokenised separately.

    Attributes:
        system: text before the first turn.
        user: text that begins a turn of the user.
        after_image: text between an image and the prompt.
        end_of_turn: text that ends a turn; empty where the checkpoint's chat template has no
            turns, and then there is no conversation.
        assistant: text that begins an answer; all text after the prompt where there are no turns.
    """

    system: str
    user: str
    after_image: str
    end_of_turn: str
    assistant: str

    @property
    def before_image(self) -> str:
        """Text before the image of a first turn."""
        return self.system + self.user

    @property
    def before_prompt(self) -> str:
        """Text between the image and the prompt."""
        return self.after_image

    @property
    def after_prompt(self) -> str:
        """Text between the prompt and the answer."""
        return self.end_of_turn + self.assistant


@dataclass(frozen=True)
class DecoderFormat:
    """Sizes of the decoder's inputs and outputs.

    Attributes:
        context_length: the largest number of tokens, image tokens included.
        operators: "microsoft", ONNX Runtime's fused operators, or "standard", ONNX's alone,
            with a cache that grows.
    """

    hidden_size: int
    num_hidden_layers: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    eos_token_ids: list[int]
    operators: str

    @property
    def cache_grows(self) -> bool:
        """Whether the decoder returns its cache longer, and cannot write it in place."""
        return self.operators == "standard"


@dataclass(frozen=True)
class Graph:
    """Facts about one graph file.

    Attributes:
        weights: files with the graph's weights; empty where the graph file holds them.
        opsets: version of each operator domain; ONNX's own domain is "ai.onnx".
        onnxruntime: the oldest ONNX Runtime that runs the graph, such as "1.22".
        int8_products: the graph multiplies uint8 activations by int8 weights.
        cache_dtype: "float32", "float16" or "bfloat16" for a decoder's keys and values; None for
            a graph without a cache.
    """

    weights: list[str]
    opsets: dict[str, int]
    onnxruntime: str
    int8_products: bool
    cache_dtype: str | None = None


@dataclass(frozen=True)
class ProviderGraphs:
    """Graphs of a variant for one provider; a graph that is left out is the variant's own.

    Attributes:
        vision_encoder: one file for each image size, whose key is the size in pixels.
    """

    vision_encoder: dict[str, str] = field(default_factory=dict)
    projector: str | None = None
    prefill: str | None = None
    decoder: str | None = None


@dataclass(frozen=True)
class SplitDecoder:
    """The decoder in parts, for the CPU; the parts share their weights with the whole decoder.

    Attributes:
        decoder_layers: file of the decoder's graph up to lm_head, with the cache of the whole.
        lm_head: file of the graph from the hidden states to all logits.
        lm_head_screen: file of the graph from the hidden states to the likeliest tokens.
    """

    decoder_layers: str
    lm_head: str
    lm_head_screen: str

    def graph_files(self) -> dict[str, str]:
        """Return the graph files by their keys in the manifest."""
        return {
            DECODER_LAYERS: self.decoder_layers,
            LM_HEAD: self.lm_head,
            LM_HEAD_SCREEN: self.lm_head_screen,
        }


@dataclass(frozen=True)
class Variant:
    """The files of a variant.

    Attributes:
        vision_encoder: one file for each image size, whose key is the size in pixels.
        projector: the projector's file.
        prefill: file of the graph that runs the prompt up to its last token: the decoder itself,
            or a graph with the same cache and without logits. The whole prompt where it has hidden
            states for `split_decoder`.
        decoder: the decoder's file.
        embed_tokens: the token embeddings' file.
        split_decoder: the decoder in parts; None where the package has the whole alone.
        second_pass: for `split_decoder` with a prefill graph that has hidden states; None where
            the decoder decides alone.
        per_provider: other graphs for some providers, by the provider's short name.
    """

    vision_encoder: dict[str, str]
    projector: str
    prefill: str
    decoder: str
    embed_tokens: str
    split_decoder: SplitDecoder | None = None
    second_pass: SecondPass | None = None
    per_provider: dict[str, ProviderGraphs] = field(default_factory=dict)

    @property
    def embedding_files(self) -> tuple[str, str]:
        """The names of the token embeddings' files; a package without scales lacks the second."""
        return self.embed_tokens, scale_file(self.embed_tokens)

    def on_providers(self, providers: Mapping[str, str]) -> "Variant":
        """Return the variant with the graphs that its providers have of their own.

        Args:
            providers: short name of the provider of each graph, by the graph's name.
        """

        def own(graph: str) -> ProviderGraphs:
            return self.per_provider.get(providers.get(graph, ""), ProviderGraphs())

        decoder = own(DECODER).decoder or self.decoder
        is_own = decoder != self.decoder
        is_on_cpu = providers.get(DECODER, CPU) == CPU
        # A decoder that runs the whole prompt goes on to do so.
        prefill = decoder if self.prefill == self.decoder else self.prefill
        return replace(
            self,
            vision_encoder=self.vision_encoder | own(VISION_ENCODER).vision_encoder,
            projector=own(PROJECTOR).projector or self.projector,
            prefill=own(PREFILL).prefill or prefill,
            decoder=decoder,
            split_decoder=self.split_decoder if is_on_cpu and not is_own else None,
        )

    def graph_files(self, image_size: int | None = None) -> list[str]:
        """Return the graph files at one image size, or at every image size when None."""
        sizes = self.vision_encoder if image_size is None else [str(image_size)]
        encoders = [self.vision_encoder[size] for size in sizes]
        parts = self.split_decoder.graph_files().values() if self.split_decoder else ()
        return list(dict.fromkeys((*encoders, self.projector, self.prefill, self.decoder, *parts)))

    def graph_keys(self) -> dict[str, str]:
        """Return every graph file that the variant names, by its key in the manifest."""
        found: dict[str, str] = {}

        def add(prefix: str, part: Variant | ProviderGraphs) -> None:
            for size, file in part.vision_encoder.items():
                found[f"{prefix}{VISION_ENCODER}.{size}"] = file
            for graph in (PROJECTOR, PREFILL, DECODER):
                if (file := getattr(part, graph)) is not None:
                    found[f"{prefix}{graph}"] = file

        add("", self)
        if self.split_decoder:
            for key, file in self.split_decoder.graph_files().items():
                found[f"split_decoder.{key}"] = file
        for provider, part in self.per_provider.items():
            add(f"per_provider.{provider}.", part)
        return found


@dataclass(frozen=True)
class CalibrationRecord:
    """How weights were quantised on the activations of texts and images.

    Attributes:
        method: the algorithm, such as "gptq".
        set: the name of the set of texts and images; "built-in" for the exporter's own.
        texts: the number of sequences of text.
        images: the number of sequences with an image.
        tokens: the number of tokens of all sequences, image tokens included.
        seed: the seed of the draw from a larger set.
        sha256: hash of the sequences as the decoder read them, in hexadecimal digits.
        graphs: files of the graphs whose weights were calibrated.
    """

    method: str
    set: str
    texts: int
    images: int
    tokens: int
    seed: int
    sha256: str
    graphs: list[str]


@dataclass(frozen=True)
class RangesRecord:
    """How the ranges of a graph's activations were found on images.

    Attributes:
        method: "min-max", the extremes over all images.
        set: the name of the set of images; "built-in" for the exporter's own.
        images: the number of images.
        image_size: side of the square input in pixels.
        seed: the seed of the draw from a larger set.
        sha256: hash of pixel_values of all images, in hexadecimal digits.
        graphs: files of the graphs whose activations have these ranges.
    """

    method: str
    set: str
    images: int
    image_size: int
    seed: int
    sha256: str
    graphs: list[str]


@dataclass(frozen=True)
class FileEntry:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Everything that a runtime needs to know of an exported folder.

    Attributes:
        format_version: the format of the file; a manifest of format 1 is held in the fields of
            format 2.
        graphs: facts about each graph file, by file name.
        measured: agreement with PyTorch of the variants that were measured, by variant.
        calibration: how weights were calibrated; None if none were.
        ranges: how the ranges of activations were found; None if no graph has static scales.
    """

    format_version: int
    source: Source
    image: ImageFormat
    prompt: PromptFormat
    decoder: DecoderFormat
    variants: dict[str, Variant]
    graphs: dict[str, Graph]
    files: dict[str, FileEntry]
    measured: dict[str, VariantAgreement] = field(default_factory=dict)
    calibration: CalibrationRecord | None = None
    ranges: RangesRecord | None = None

    def write(self, folder: Path) -> None:
        """Write the manifest in the newest format, last of all files and all at once."""
        content = asdict(replace(self, format_version=FORMAT_VERSION))
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        unfinished = folder / f"{MANIFEST_FILE}.new"
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(folder / MANIFEST_FILE)

    def files_of(
        self, variant: str, image_size: int, providers: Mapping[str, str] | None = None
    ) -> list[str]:
        """Return the files of a variant at one image size, weights and tokenizer included.

        Args:
            variant: the variant's name.
            image_size: side of the square input in pixels.
            providers: short name of the provider of each graph, by the graph's name.
        """
        chosen = self.variants[variant].on_providers(providers or {})
        graphs = chosen.graph_files(image_size)
        weights = [file for graph in graphs for file in self.graphs[graph].weights]
        needed = {*graphs, *weights, *chosen.embedding_files, TOKENIZER_FILE}
        return [name for name in self.files if name in needed]

    def least_onnxruntime(self, variant: Variant) -> str:
        """Return the oldest ONNX Runtime that runs every graph of a variant."""
        versions = (self.graphs[file].onnxruntime for file in variant.graph_files())
        return max(versions, key=parse_version)


def parse_version(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version: "1.22.0" gives (1, 22).

    Raises:
        ValueError: the text does not begin with two numbers.
    """
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def read_manifest(folder: Path) -> Manifest:
    """Read and check `fastvlm.json`; the other files are not opened.

    Raises:
        PackageError: the folder or its manifest is missing, or the manifest breaks a rule of its
            format.
    """
    path = folder / MANIFEST_FILE
    if not folder.is_dir():
        raise PackageError(
            f"{folder}: no such folder; expected an exported package. "
            "Make one with `fastvlm-onnx export CHECKPOINT -o DIR`."
        )
    try:
        content = read_json_object(path, PackageError, "export the package again", LARGEST_MANIFEST)
    except FileNotFoundError:
        raise PackageError(
            f"{folder}: found no {MANIFEST_FILE}; expected an exported package. If this is a "
            f"checkpoint, run `fastvlm-onnx export {folder} -o DIR` first."
        ) from None
    version = content.get("format_version")
    # `True == 1` in Python, and JSON's true is no version.
    if version not in READABLE_VERSIONS or isinstance(version, bool):
        raise PackageError(
            f"{path}: format_version is {version!r}, expected "
            f"{' or '.join(map(str, READABLE_VERSIONS))}; "
            "export the package again, or install a fastvlm-onnx that knows this format."
        )
    is_old = version == 1
    if is_old:
        # Imported here, since few packages are of format 1.
        from fastvlm_onnx.manifest_format_1 import convert_format_1

        content = convert_format_1(content, path)
    manifest: Manifest = parse(content, Manifest, path, known_keys_only=is_old)
    _check_references(manifest, path)
    return manifest


def _check_references(manifest: Manifest, path: Path) -> None:
    """Raise PackageError for a size out of range, or a name that leads nowhere or out."""

    def refuse(found: str) -> PackageError:
        return PackageError(f"{path}: {found}; export the package again.")

    for name in manifest.files:
        if _leaves_folder(name):
            raise PackageError(
                f"{path}: files.{name} leaves the package's folder; do not trust it."
            )
    if manifest.decoder.context_length > LONGEST_CONTEXT:
        raise refuse(
            f"decoder.context_length is {manifest.decoder.context_length}, "
            f"expected at most {LONGEST_CONTEXT}"
        )
    if not manifest.variants:
        raise refuse("variants is empty")
    for name in manifest.measured:
        if name not in manifest.variants:
            raise refuse(f"measured.{name} is no variant of the package")
    for name, variant in manifest.variants.items():
        where = f"variants.{name}"
        if not variant.vision_encoder:
            raise refuse(f"{where}.vision_encoder is empty")
        if variant.embed_tokens not in manifest.files:
            raise refuse(
                f"{where}.embed_tokens names {variant.embed_tokens!r}, which is not among its files"
            )
        positions = variant.second_pass.positions if variant.second_pass else 1
        if not 1 <= positions <= LONGEST_CONTEXT:
            raise refuse(
                f"{where}.second_pass.positions is {positions}, expected 1 to {LONGEST_CONTEXT}"
            )
        for key, file in variant.graph_keys().items():
            if file not in manifest.files:
                raise refuse(f"{where}.{key} names {file!r}, which is not among its files")
            if file not in manifest.graphs:
                raise refuse(f"{where}.{key} names {file!r}, which is not among its graphs")
    for name, graph in manifest.graphs.items():
        for file in graph.weights:
            if file not in manifest.files:
                raise refuse(f"graphs.{name}.weights names {file!r}, which is not among its files")
        try:
            parse_version(graph.onnxruntime)
        except ValueError:
            raise refuse(
                f"graphs.{name}.onnxruntime is {graph.onnxruntime!r}, expected a version like 1.20"
            ) from None


def _leaves_folder(name: str) -> bool:
    pure = PurePosixPath(name)
    return (
        pure.is_absolute()
        or ".." in pure.parts
        or "\\" in name
        or ":" in name
        or len(pure.parts) != 1
    )
