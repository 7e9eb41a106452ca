"""From the body of a chat request to a question that the scheduler takes."""

import asyncio
from dataclasses import dataclass
from typing import Any

from fastvlm_onnx.errors import InputError
from fastvlm_onnx.runtime.answering.see import SeenImage
from fastvlm_onnx.runtime.engine.options import MAX_NEW_TOKENS, GenerationConfig
from fastvlm_onnx.runtime.serving.request import Request
from fastvlm_onnx.runtime.structured.constraints import Constraints
from fastvlm_onnx.runtime.text.prompt import (
    ImagePlace,
    Message,
    PromptPart,
    num_positions,
    room_for_answer,
)
from fastvlm_onnx.server.errors import ApiError, bad_request
from fastvlm_onnx.server.fetching import CountBytes
from fastvlm_onnx.server.pictures import SEEN_PREFIX, Pictures
from fastvlm_onnx.server.schemas import ChatRequest, ImagePart, TextPart
from fastvlm_onnx.server.service import Service
from fastvlm_onnx.server.settings import Settings


@dataclass(frozen=True)
class Question:
    """A chat request that was checked.

    Attributes:
        request: the question as the scheduler takes it.
        choices: number of answers.
    """

    request: Request
    choices: int


class Questions:
    """Makes questions of requests, within the settings' limits."""

    def __init__(self, settings: Settings, pictures: Pictures) -> None:
        self._settings, self._pictures = settings, pictures

    async def of(self, chat: ChatRequest, service: Service, count: CountBytes) -> Question:
        """Check a request and read its images' files.

        Limits come first, then the prompt's length, and the images last.

        Args:
            count: counts the bytes of files that are fetched or read.

        Raises:
            ApiError: a field or an image of the request cannot be used.
            FastVLMError: the prompt or an option cannot be used.
        """
        service.check_model(chat.model)
        service.check_image_size(chat.image_size)
        urls = self._check_counts(chat)
        config = self._config(chat)
        # Tokenising a long text, and compiling a schema, would hold up the streams of others.
        parts = await asyncio.to_thread(self._check_prompt, chat, config, service)
        images = await asyncio.gather(*(self._image(url, service, count) for url in urls))
        return Question(Request(parts, images, config), chat.n or 1)

    def _check_counts(self, chat: ChatRequest) -> list[str]:
        """Check numbers that need no tokenizer and no image.

        Returns:
            The URLs of the images in their order.
        """
        settings = self._settings
        content = [part for message in chat.messages for part in message.content]
        urls = [part.image_url.url for part in content if isinstance(part, ImagePart)]
        characters = sum(len(part.text) for part in content if isinstance(part, TextPart))
        for found, most, noun, param in (
            (len(content), settings.max_parts, "content parts", "messages"),
            (len(urls), settings.max_images, "images", "messages"),
            (characters, settings.max_characters, "characters", "messages"),
            (chat.n or 1, settings.max_choices, "answers", "n"),
        ):
            if found > most:
                raise bad_request(
                    f"the request has {found:,} {noun}; expected at most {most:,}.",
                    param,
                    "too_many",
                )
        if chat.top_logprobs and not chat.logprobs:
            raise bad_request(
                "top_logprobs needs logprobs to be true.", "top_logprobs", "invalid_value"
            )
        return urls

    def _config(self, chat: ChatRequest) -> GenerationConfig:
        settings = self._settings
        asked = chat.max_completion_tokens or chat.max_tokens or MAX_NEW_TOKENS
        options: dict[str, Any] = {
            "temperature": chat.temperature,
            "top_p": chat.top_p,
            "top_k": chat.top_k,
            "min_p": chat.min_p,
            "repetition_penalty": chat.repetition_penalty,
            "stop": chat.stop,
            "ignore_eos": chat.ignore_eos,
            "logprobs": chat.logprobs,
            "top_logprobs": chat.top_logprobs,
            # OpenAI's seeds may be negative, numpy's may not.
            "seed": None if chat.seed is None else chat.seed % 2**64,
            **_constraint(chat),
        }
        return GenerationConfig(
            max_new_tokens=min(asked, settings.max_answer_tokens or asked),
            max_time=settings.max_seconds,
            orient=settings.orient,
            **{name: value for name, value in options.items() if value is not None},
        )

    def _check_prompt(
        self, chat: ChatRequest, config: GenerationConfig, service: Service
    ) -> list[PromptPart]:
        """Compile the answer's format, tokenise a conversation, and check its length.

        Raises:
            ApiError: the format cannot be used, or the prompt is longer than the settings allow.
            InputError: the conversation cannot be used.
            PromptTooLongError: the prompt leaves no room for an answer.
        """
        components = service.model.components()
        _check_format(components.constraints, config)
        parts = components.template.conversation(_messages(chat))
        image_tokens = components.image_encoder.num_image_tokens
        room_for_answer(components.language_model.sizes.context_length, parts, image_tokens)
        found, most = num_positions(parts, image_tokens), self._settings.max_prompt_tokens
        if most is not None and found > most:
            raise bad_request(
                f"the prompt has {found:,} tokens, those of images included; expected at most "
                f"{most:,}.",
                "messages",
                "context_length_exceeded",
            )
        return parts

    async def _image(self, url: str, service: Service, count: CountBytes) -> bytes | SeenImage:
        if url.startswith(SEEN_PREFIX):
            return service.scheduler.seen(url)
        return await self._pictures.read(url, count)


def _messages(chat: ChatRequest) -> list[Message]:
    """The conversation with a number in the place of each image, from 0."""
    messages, images = [], 0
    for message in chat.messages:
        content: list[str | ImagePlace] = []
        for part in message.content:
            if isinstance(part, TextPart):
                content.append(part.text)
            else:
                content.append(ImagePlace(images))
                images += 1
        role = "system" if message.role == "developer" else message.role
        messages.append(Message(role, content))
    return messages


def _check_format(constraints: Constraints, config: GenerationConfig) -> None:
    try:
        constraints.check(config)
    except InputError as error:
        raise bad_request(str(error), "response_format", "invalid_schema") from None


def _constraint(chat: ChatRequest) -> dict[str, Any]:
    """The options that hold an answer to a JSON schema.

    Raises:
        ApiError: the format has no schema.
    """
    wanted = chat.response_format
    if wanted is None or wanted.type == "text":
        return {}
    if wanted.type == "json_object":
        return {"schema": {"type": "object"}}
    if wanted.json_schema is None:
        raise ApiError(
            400,
            "response_format of type json_schema has no json_schema; give one with a name and a "
            "schema.",
            param="response_format.json_schema",
            code="missing_field",
        )
    return {"schema": wanted.json_schema.schema_}
