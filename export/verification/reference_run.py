"""Run pictures and prompts through the PyTorch reference, from the file to the logits.

The package that is measured against the reference is not known here.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes  # noqa: F401  (numpy learns bfloat16 from it, in which checkpoints are stored)
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image

from fastvlm_onnx.errors import CheckpointError
from fastvlm_onnx.export.checkpoint.reader import Checkpoint
from fastvlm_onnx.export.verification.reference_model import ReferenceFastVLM
from fastvlm_onnx.names import (
    DECODER,
    IMAGE_FEATURES,
    IMAGE_HIDDEN_STATES,
    PIXEL_VALUES,
    PROJECTOR,
    VISION_ENCODER,
)

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Question:
    """A picture and a prompt.

    Attributes:
        picture: the picture's file.
        prompt: the user's prompt.
        before_image: token ids before the image.
        after_image: token ids after the image.
        steps: the largest number of tokens of the answer.
    """

    picture: Path
    prompt: str
    before_image: list[int]
    after_image: list[int]
    steps: int


@dataclass(frozen=True)
class ReferenceAnswer:
    """A greedy answer.

    Attributes:
        token_ids: the tokens.
        logits: the logits before each token, float32 [steps, vocab_size].
    """

    token_ids: list[int]
    logits: FloatArray


@dataclass(frozen=True)
class ReferenceRun:
    """The results of the reference.

    Attributes:
        versions: the libraries that computed the results, with their versions.
        stages: the arrays of each picture, by stage: pixel_values, image_hidden_states,
            image_features.
        answers: the answers, in the order of the questions.
        largest_activations: the largest magnitude inside each graph, over all pictures and
            prompts.
    """

    versions: str
    stages: dict[Path, dict[str, FloatArray]]
    answers: list[ReferenceAnswer]
    largest_activations: dict[str, float]


@torch.inference_mode()
def run_reference(
    checkpoint: Checkpoint,
    questions: Sequence[Question],
    image_size: int,
    threads: int | None,
    tick: Callable[[str], None],
) -> ReferenceRun:
    """Load the reference, run all questions, and release the reference.

    Args:
        checkpoint: the checkpoint with the weights.
        questions: the pictures and prompts.
        image_size: side of the square input in pixels.
        threads: PyTorch's threads; PyTorch's own choice when None.
        tick: called with a label before each picture and each question.

    Raises:
        CheckpointError: the tensors do not fit the configuration, or cannot be read.
    """
    with _torch_threads(threads):
        reference = _load_reference(checkpoint)
        largest = _watch(reference)
        stages = {}
        for picture in dict.fromkeys(question.picture for question in questions):
            tick(f"PyTorch, {picture.name}")
            stages[picture] = _picture_stages(reference, picture, image_size)
        answers = []
        for question in questions:
            tick(f"PyTorch, {question.prompt}")
            features = torch.from_numpy(stages[question.picture][IMAGE_FEATURES])
            answers.append(_answer(reference, question, features))
    versions = f"PyTorch {torch.__version__}, transformers {transformers.__version__}"
    return ReferenceRun(versions, stages, answers, largest)


@contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _watch(reference: ReferenceFastVLM) -> dict[str, float]:
    """Watch the reference's layers.

    Returns:
        The largest magnitude that a layer of each graph reads or returns; updated by every run.
    """
    graphs = {
        VISION_ENCODER: reference.vision_encoder,
        PROJECTOR: reference.projector,
        DECODER: reference.decoder.model,  # without lm_head, whose logits no layer reads
    }
    largest = dict.fromkeys(graphs, 0.0)

    def note(graph: str, values: object) -> None:
        for value in values if isinstance(values, tuple) else (values,):
            if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
                low, high = torch.aminmax(value)
                largest[graph] = max(largest[graph], -float(low), float(high))

    for graph, module in graphs.items():
        for layer in module.modules():
            # Inputs count too: the input of a down projection is no layer's output.
            layer.register_forward_hook(
                lambda _, inputs, output, graph=graph: note(graph, (*inputs, output))
            )
    return largest


def _load_reference(checkpoint: Checkpoint) -> ReferenceFastVLM:
    reference = ReferenceFastVLM(checkpoint.config)
    # torch needs writable memory, and the memory of a mapped file is not writable.
    tensors = {
        name: torch.from_numpy(np.require(tensor.read(), requirements=["C", "W"]))
        for name, tensor in checkpoint.tensors.items()
    }
    try:
        reference.load_checkpoint(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"{checkpoint.name}: its tensors are not those of its configuration "
            f"({' '.join(str(error).split())[:300]}); download or save the checkpoint again."
        ) from None
    return reference


def _picture_stages(
    reference: ReferenceFastVLM, picture: Path, image_size: int
) -> dict[str, FloatArray]:
    pixel_values = reference_pixel_values(picture, image_size)
    hidden_states = reference.vision_encoder(torch.from_numpy(pixel_values))
    return {
        PIXEL_VALUES: pixel_values,
        IMAGE_HIDDEN_STATES: hidden_states.numpy(),
        IMAGE_FEATURES: reference.projector(hidden_states).numpy(),
    }


def reference_pixel_values(picture: Path, image_size: int) -> FloatArray:
    """Pad a picture to a square with black, and run transformers' CLIP processor, as predict.py.

    Returns:
        float32 [1, 3, image_size, image_size].

    Source: apple/ml-fastvlm @592b4ad (predict.py, mm_utils.py, mobileclip_encoder.py).
    """
    with Image.open(picture) as file:
        image = file.convert("RGB")
    side = max(image.size)
    square = Image.new("RGB", (side, side), (0, 0, 0))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    # transformers 5.0 has the Pillow processor under the short name, later versions under the long.
    pillow = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    processor = pillow(
        size={"shortest_edge": image_size},
        crop_size={"height": image_size, "width": image_size},
        image_mean=[0.0, 0.0, 0.0],
        image_std=[1.0, 1.0, 1.0],
    )
    pixel_values: FloatArray = processor(square, return_tensors="np")["pixel_values"]
    return pixel_values


def _answer(
    reference: ReferenceFastVLM, question: Question, image_features: torch.Tensor
) -> ReferenceAnswer:
    """Answer greedily, up to an end token, which counts as a step, or `question.steps` tokens."""
    before, after = (
        reference.embed_tokens(torch.tensor([ids]))
        for ids in (question.before_image, question.after_image)
    )
    inputs_embeds = torch.cat([before, image_features, after], dim=1)
    token_ids: list[int] = []
    logits: list[FloatArray] = []
    cache = None
    while True:
        output = reference.decoder(
            inputs_embeds=inputs_embeds, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        logits.append(output.logits[0, 0].numpy())
        token_ids.append(int(logits[-1].argmax()))
        is_eos = token_ids[-1] in reference.config.decoder.eos_token_ids
        if is_eos or len(token_ids) == question.steps:
            return ReferenceAnswer(token_ids, np.stack(logits))
        inputs_embeds = reference.embed_tokens(torch.tensor([[token_ids[-1]]]))
        cache = output.past_key_values
