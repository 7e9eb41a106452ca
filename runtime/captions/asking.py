"""The same question about many pictures, in batches. Knows no files but those of pictures."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastvlm_onnx.errors import FastVLMError, InputError
from fastvlm_onnx.runtime.captions.caption import Caption
from fastvlm_onnx.runtime.captions.prompts import PromptTemplate
from fastvlm_onnx.runtime.engine.options import GenerationConfig
from fastvlm_onnx.runtime.text.prompt import check_unicode, question, room_for_answer
from fastvlm_onnx.runtime.vision.image_encoder import ImageFeatures, ImageInput, PixelValues

if TYPE_CHECKING:
    from fastvlm_onnx.runtime.model import FastVLM


@dataclass(frozen=True)
class NamedPicture:
    """A picture that is no file here.

    Attributes:
        path: its name in the result.
        content: the picture, or the error that reading it gave.
    """

    path: str
    content: ImageInput | FastVLMError


@dataclass(frozen=True)
class _Read:
    """A picture that was read, with its prompt; or why there is none."""

    path: str
    image: PixelValues | ImageFeatures | None
    prompt: str
    error: str | None = None


def caption(
    model: "FastVLM",
    pictures: Sequence[str | NamedPicture],
    prompt: str | PromptTemplate,
    *,
    batch_size: int,
    **options: Any,
) -> Iterator[Caption]:
    """Ask the same question about each picture, in batches.

    The next batch's pictures are read while a batch is answered. A picture that cannot be read
    gives a caption with an error.

    Args:
        model: answers the question.
        pictures: paths of files with pictures, or pictures with names.
        prompt: the question, or a template of it.
        batch_size: pictures in a batch, 1 or more.
        options: the keyword arguments of `FastVLM.generate_batch`.

    Yields:
        A caption for each picture, in their order.

    Raises:
        InputError: an option or the prompt cannot be used. A template's prompt that cannot be used
            for a picture is that caption's error.
    """
    config = GenerationConfig(**options)
    model.components().constraints.check(config)
    if isinstance(prompt, str):
        _check_room(model, prompt)
    batches = [pictures[i : i + batch_size] for i in range(0, len(pictures), batch_size)]
    if not batches:
        return

    def read(picture: str | NamedPicture) -> _Read:
        path = picture if isinstance(picture, str) else picture.path
        content = picture if isinstance(picture, str) else picture.content
        try:
            if isinstance(content, FastVLMError):
                raise content
            asked = prompt if isinstance(prompt, str) else _filled(model, prompt, path)
            return _Read(path, model.image_encoder.read(content, orient=config.orient), asked)
        except FastVLMError as error:
            return _Read(path, None, "", str(error))

    with ThreadPoolExecutor(1) as pool:
        # Only one batch is read ahead, because pixel_values of a large folder do not fit in memory.
        reading = [pool.submit(read, picture) for picture in batches[0]]
        for number in range(len(batches)):
            batch = [future.result() for future in reading]
            next_batch = batches[number + 1] if number + 1 < len(batches) else ()
            reading = [pool.submit(read, picture) for picture in next_batch]
            yield from _answer(model, batch, options)


def _answer(model: "FastVLM", batch: list[_Read], options: dict[str, Any]) -> Iterator[Caption]:
    readable = [one for one in batch if one.image is not None]
    features = [model.image_encoder.encode(one.image) for one in readable if one.image is not None]
    prompts = [one.prompt for one in readable]
    answers = iter(model.generate_batch(features, prompts, **options) if readable else [])
    for one in batch:
        yield Caption(one.path, None if one.image is None else next(answers), one.error)


def _filled(model: "FastVLM", template: PromptTemplate, path: str) -> str:
    prompt = template.fill(path)
    try:
        check_unicode(prompt)
    except InputError:
        raise InputError(
            f"{path!a}: the name is not valid Unicode, which the template's prompt needs; rename "
            "the file, or ask with --prompt."
        ) from None
    _check_room(model, prompt)
    return prompt


def _check_room(model: "FastVLM", prompt: str) -> None:
    parts = model.template.prompt(question(prompt, num_images=1))
    context = model.language_model.sizes.context_length
    room_for_answer(context, parts, model.num_image_tokens)
