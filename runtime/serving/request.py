"""A question to a scheduler, and its way through the queue."""

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from fastvlm_onnx.arguments import instance, items
from fastvlm_onnx.errors import InputError
from fastvlm_onnx.runtime.answering.answer import Answer, StageTimes
from fastvlm_onnx.runtime.answering.components import Components
from fastvlm_onnx.runtime.answering.results import FinishReason
from fastvlm_onnx.runtime.answering.see import SeenImage
from fastvlm_onnx.runtime.engine.options import GenerationConfig
from fastvlm_onnx.runtime.serving.running_answer import RunningAnswer
from fastvlm_onnx.runtime.text.prompt import ImagePlace, PromptPart, num_positions, room_for_answer
from fastvlm_onnx.runtime.vision.image_encoder import (
    ImageEncoder,
    ImageFeatures,
    ImageInput,
    PixelValues,
)


@dataclass(frozen=True)
class Request:
    """A question.

    Attributes:
        parts: the prompt: token ids, and places of images.
        images: the images that each ImagePlace numbers, in any form that `generate` takes.
        config: how the answer is made. `max_time` counts from the submission.
    """

    parts: Sequence[PromptPart]
    images: Sequence[ImageInput] = ()
    config: GenerationConfig = field(default_factory=GenerationConfig)

    def __post_init__(self) -> None:
        """Refuse what is no prompt.

        Raises:
            InputError: the parts, the images or the options are of another type.
        """
        # The fields may be iterators, which are used up here.
        object.__setattr__(self, "images", items("images", self.images))
        object.__setattr__(self, "parts", items("parts", self.parts))
        for index, part in enumerate(self.parts):
            if isinstance(part, ImagePlace):
                is_good = 0 <= part.index < len(self.images)
            else:
                is_good = isinstance(part, list) and all(
                    type(token_id) is int and token_id >= 0 for token_id in part
                )
            if not is_good:
                raise InputError(
                    f"parts[{index}] is a {type(part).__name__}; expected a list of token ids, or "
                    "the ImagePlace of an image of this request."
                )
        if not any(isinstance(part, ImagePlace) or len(part) for part in self.parts):
            raise InputError("parts is empty; give token ids, or the place of an image.")
        instance("config", self.config, GenerationConfig)


class RequestImages:
    """The images of one request. All answers to it share the features.

    Attributes:
        is_read: `encode` may follow.
        preprocess: seconds from images to pixel_values.
        vision: seconds from pixel_values to features.
    """

    def __init__(self, images: Sequence[ImageInput], *, orient: bool) -> None:
        self._images, self._orient = images, orient
        self._read: list[PixelValues | ImageFeatures] = []
        self._features: list[ImageFeatures] | None = None
        self.preprocess = self.vision = 0.0
        if all(isinstance(image, ImageFeatures) for image in images):
            self._features = [image for image in images if isinstance(image, ImageFeatures)]
        self.is_read = self._features is not None

    def read(self, encoder: ImageEncoder) -> None:
        """Read the images, which are not held from then on.

        Raises:
            InputError: an image cannot be read.
        """
        began = time.perf_counter()
        self._read = [
            encoder.read(image, orient=self._orient, use_cache=True) for image in self._images
        ]
        self._images = ()
        self.preprocess = time.perf_counter() - began
        self.is_read = True

    def encode(self, encoder: ImageEncoder) -> list[ImageFeatures]:
        """The features, which are computed once.

        Raises:
            ProviderError: a provider failed.
        """
        if self._features is None:
            began = time.perf_counter()
            self._features = [encoder.encode(image) for image in self._read]
            self._read = []
            self.vision = time.perf_counter() - began
        return self._features


class AnswerJob:
    """A request in the scheduler, from the queue to the end of its answer.

    Attributes:
        images: the request's images.
        running: the answer as the caller sees it.
        called: moment of the submission, on time.perf_counter's clock.
        prompt_tokens: positions before the answer.
        max_new_tokens: the largest number of tokens that the answer may get.
        answer: None until `begin`.
    """

    def __init__(
        self,
        components: Components,
        request: Request,
        images: RequestImages,
        running: RunningAnswer,
        called: float,
    ) -> None:
        """Check a request.

        Raises:
            InputError: a token id is not in the vocabulary.
            PromptTooLongError: the prompt leaves no room for an answer.
        """
        self.parts, self.config = request.parts, request.config
        self.images, self.running, self.called = images, running, called
        self.answer: Answer | None = None
        vocab_size = components.language_model.sizes.vocab_size
        token_ids = (part for part in self.parts if not isinstance(part, ImagePlace))
        if (largest := max(map(max, filter(None, token_ids)), default=0)) >= vocab_size:
            raise InputError(f"parts has the token id {largest}; the model has {vocab_size:,}.")
        num_image_tokens = components.image_encoder.num_image_tokens
        context = components.language_model.sizes.context_length
        room = room_for_answer(context, self.parts, num_image_tokens)
        self.prompt_tokens = num_positions(self.parts, num_image_tokens)
        self.max_new_tokens = min(self.config.max_new_tokens, room)

    @property
    def deadline(self) -> float:
        """Moment at which the answer ends, on time.perf_counter's clock."""
        limit = self.config.max_time
        return float("inf") if limit is None else self.called + limit

    @property
    def is_over(self) -> bool:
        """The answer is to end before its first token."""
        return self.running.is_cancelled or time.perf_counter() >= self.deadline

    @property
    def reason_to_end(self) -> FinishReason:
        """Why an answer ends for a reason that lies outside it."""
        in_time = self.running.is_cancelled or time.perf_counter() < self.deadline
        return "cancelled" if in_time else "time"

    def begin(self, components: Components) -> Answer:
        """Begin the answer; its prefill is about to begin."""
        times = StageTimes(
            self.called, self.images.preprocess, self.images.vision, time.perf_counter()
        )
        self.answer = components.begin_answer(self.config, self.max_new_tokens, times)
        return self.answer

    def publish(self, components: Components) -> None:
        """Hand out what has come of the answer."""
        assert self.answer is not None
        if self.answer.error is not None:
            self.running.fail(self.answer.error)
        elif self.answer.has_ended:
            generation = self.answer.result(components.describe(), self.prompt_tokens)
            self.running.add_piece(self.answer.take_piece(generation))
        elif self.answer.has_text:
            self.running.add_piece(self.answer.take_piece())

    def fail(self, error: Exception) -> None:
        """End the job with an error."""
        self.running.fail(error)


class SeeJob:
    """An image in the scheduler that is to be encoded and prefilled.

    Attributes:
        images: the image.
        result: the image once it is seen.
    """

    deadline = float("inf")
    is_over = False

    def __init__(self, images: RequestImages) -> None:
        self.images = images
        self.result: Future[SeenImage] = Future()

    def fail(self, error: Exception) -> None:
        """End the job with an error."""
        self.result.set_exception(error)
