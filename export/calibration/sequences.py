"""A calibration set as sequences of inputs_embeds, as the decoder sees them in use."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import onnx_ir as ir

from fastvlm_onnx.errors import InputError
from fastvlm_onnx.export.architecture.tensor_names import PROJECTOR_PREFIX, VISION_PREFIX
from fastvlm_onnx.export.calibration.calibration_set import CalibrationSet
from fastvlm_onnx.export.checkpoint.reader import Checkpoint
from fastvlm_onnx.export.graphs.decoder import embedding_rows
from fastvlm_onnx.export.graphs.projector import build_projector
from fastvlm_onnx.export.graphs.vision_encoder import build_vision_encoder
from fastvlm_onnx.export.tensors.external_data import StoredTensor, write_tensors
from fastvlm_onnx.export.tensors.lazy_array import FloatArray
from fastvlm_onnx.export.tensors.quantization import (
    INT8_BLOCK,
    dequantize_blocks,
    quantize_blocks,
)
from fastvlm_onnx.export.tensors.weights import Weights
from fastvlm_onnx.names import PIXEL_VALUES, TOKENIZER_FILE
from fastvlm_onnx.progress import Progress
from fastvlm_onnx.runtime.ort.provider_selection import ProviderChoice
from fastvlm_onnx.runtime.ort.providers import CPU
from fastvlm_onnx.runtime.ort.session import GraphSession
from fastvlm_onnx.runtime.text.prompt import ImagePlace, PromptTemplate, question
from fastvlm_onnx.runtime.text.tokenizer import TextTokenizer
from fastvlm_onnx.runtime.vision.image import preprocess, read_picture

Thing = TypeVar("Thing")

# The prompts that are asked about the images, in turn.
PROMPTS: Final = (
    "Describe the image.",
    "What is written here?",
    "How many people are in the picture, and where are they?",
    "List the objects that you see, with their colors.",
)


@dataclass(frozen=True)
class Limits:
    """The most that a calibration runs.

    Attributes:
        texts: sequences of text. More are drawn at random.
        images: sequences with an image. More are drawn at random.
        tokens: tokens of a sequence of text. A longer text is cut into several sequences.
        least_tokens: tokens of all sequences. A smaller set is refused.
        seed: the seed of the draws.
    """

    texts: int = 64
    images: int = 16
    tokens: int = 400
    least_tokens: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Sequences:
    """Sequences for the decoder.

    Attributes:
        inputs_embeds: float32 [tokens, hidden_size] of all sequences, one after the other.
        lengths: the tokens of each sequence.
        texts: the number of sequences of text.
        images: the number of sequences with an image.
    """

    inputs_embeds: FloatArray
    lengths: tuple[int, ...]
    texts: int
    images: int


def make_sequences(
    checkpoint: Checkpoint,
    calibration_set: CalibrationSet,
    image_size: int,
    limits: Limits,
    progress: Progress,
) -> Sequences:
    """Tokenise the texts, encode the images, and look the tokens up.

    Args:
        checkpoint: the checkpoint with tokenizer, token embeddings and vision encoder.
        calibration_set: texts and images.
        image_size: side of the square input in pixels.
        limits: the most that is used.
        progress: called with the stage, the bytes of pixel_values done and all bytes.

    Raises:
        InputError: the set has fewer tokens than `limits.least_tokens`.
        CheckpointError: a tensor is missing, damaged or of another shape.
    """
    rng = np.random.default_rng(limits.seed)
    context_length = checkpoint.config.decoder.max_position_embeddings
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / TOKENIZER_FILE
        path.write_text(checkpoint.tokenizer, encoding="utf-8")
        tokenizer = TextTokenizer(path)
    template = PromptTemplate(tokenizer, checkpoint.prompt)
    pieces = _conversations(calibration_set.texts, template, min(limits.tokens, context_length))
    pieces = draw_some(pieces, limits.texts, rng)
    images = draw_some(list(calibration_set.images_at(image_size)), limits.images, rng)
    prompts = [template.prompt(question(PROMPTS[i % len(PROMPTS)], 1)) for i in range(len(images))]
    features = encode_images(checkpoint, images, image_size, progress) if images else []
    used = {i for piece in pieces for i in piece}
    used |= {i for prompt in prompts for part in prompt if isinstance(part, list) for i in part}
    rows = _embed(checkpoint, sorted(used))
    found = [np.stack([rows[i] for i in piece]) for piece in pieces]
    for prompt, feature in zip(prompts, features, strict=True):
        parts = [
            feature if isinstance(part, ImagePlace) else np.stack([rows[i] for i in part])
            for part in prompt
        ]
        found.append(np.concatenate(parts)[:context_length])
    total = sum(map(len, found))
    if total < limits.least_tokens:
        raise InputError(
            f"the calibration set {calibration_set.name} has {total:,} tokens, expected at least "
            f"{limits.least_tokens:,}; add texts."
        )
    lengths = tuple(map(len, found))
    return Sequences(np.concatenate(found), lengths, len(pieces), len(images))


def _conversations(texts: Sequence[str], template: PromptTemplate, length: int) -> list[list[int]]:
    """Return texts as conversations: the first half of a text asks, the second half answers.

    The decoder sees its own template in use, and the first tokens of a context are special to it.

    Args:
        texts: the texts. A text that does not fit in a sequence gives several.
        template: the conversation's template.
        length: the largest number of tokens of a sequence.
    """
    found = []
    before = template.tokenizer.encode_template(template.text.before_image)
    after = template.tokenizer.encode_template(template.text.after_prompt)
    room = max(2, length - len(before) - len(after))
    for text in texts:
        ids = template.tokenizer.encode(text)
        for start in range(0, len(ids), room):
            piece = ids[start : start + room]
            half = len(piece) // 2
            found.append([*before, *piece[:half], *after, *piece[half:]][:length])
    return found


def draw_some(things: list[Thing], count: int, rng: np.random.Generator) -> list[Thing]:
    """Return at most `count` of some things, in their order."""
    if len(things) <= count:
        return things
    chosen = rng.choice(len(things), count, replace=False)
    return [things[i] for i in sorted(chosen)]


def _embed(checkpoint: Checkpoint, ids: Sequence[int]) -> dict[int, FloatArray]:
    """Return the int8 embeddings of some tokens by id, each float32 [hidden_size].

    The matrix is read in pieces, of which only the rows that are needed are kept.

    Args:
        checkpoint: the checkpoint with the token embeddings.
        ids: token ids in ascending order.
    """
    wanted = np.array(ids)
    rows, first = [], 0
    for chunk in embedding_rows(Weights(checkpoint.tensors), checkpoint.config.decoder).chunks():
        inside = wanted[(first <= wanted) & (wanted < first + len(chunk))]
        rows.append(chunk[inside - first])
        first += len(chunk)
    matrix = np.concatenate(rows)
    # A package with an int4 decoder has its token embeddings in int8.
    blocks = quantize_blocks(matrix, INT8_BLOCK, 8)
    return dict(zip(ids, dequantize_blocks(blocks, matrix.shape[1]), strict=True))


def encode_images(
    checkpoint: Checkpoint, images: Sequence[Path], image_size: int, progress: Progress
) -> list[FloatArray]:
    """Run images through vision encoder and projector in float32.

    Args:
        checkpoint: the checkpoint with the weights.
        images: image files.
        image_size: side of the square input in pixels.
        progress: called with the stage, the bytes of pixel_values done and all bytes.

    Returns:
        image_features, float32 [num_image_tokens, hidden_size] of each image.

    Raises:
        CheckpointError: a tensor is missing, damaged or of another shape.
        InputError: an image cannot be read.
    """
    config, weights = checkpoint.config, Weights(checkpoint.tensors)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        vision = build_vision_encoder(
            weights / VISION_PREFIX.rstrip("."), config.vision, image_size
        )
        encoder = open_graph(vision, Path(folder) / "vision_encoder.onnx")
        projector_graph = build_projector(
            weights / PROJECTOR_PREFIX.rstrip("."), config, is_int8=False
        )
        projector = open_graph(projector_graph, Path(folder) / "projector.onnx")
        (projector_input,) = projector.get_inputs()
        image_bytes = 4 * 3 * image_size**2
        for done, image in enumerate(images):
            progress("calibration images", done * image_bytes, len(images) * image_bytes)
            pixel_values = preprocess(read_picture(image), image_size)
            (hidden_states,) = encoder.run(None, {PIXEL_VALUES: pixel_values})
            (features,) = projector.run(None, {projector_input.name: hidden_states})
            found.append(features[0])
    return found


def open_graph(model: ir.Model, path: Path) -> GraphSession:
    """Write a graph with its weights beside it, and open it on the CPU."""
    initializers = model.graph.initializers
    large = {
        name: value.const_value
        for name, value in initializers.items()
        if isinstance(value.const_value, StoredTensor)
    }
    written = write_tensors(large, path.parent, f"{path.name}.data", lambda _: None)
    for name, tensor in written.items():
        initializers[name].const_value = tensor
    ir.save(model, path)
    return GraphSession(path, ProviderChoice(CPU))
