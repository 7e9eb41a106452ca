"""The requests that clients send, as pydantic models; OpenAI's names and ranges."""

import reprlib
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from fastvlm_onnx.server.errors import ApiError, bad_request

# Brackets and commas of a body. Base64 has none of them, and no prompt fits in a context with more.
MAX_JSON_VALUES: Final = 200_000


class RequestModel(BaseModel):
    """An object of a request. Unknown fields are kept in `model_extra`, to be logged."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)


class TextPart(RequestModel):
    type: Literal["text"]
    text: str


class ImageUrl(RequestModel):
    url: str = Field(
        min_length=1,
        description="data:image/...;base64,..., see:ID, and http, https or file URLs where allowed",
    )


class ImagePart(RequestModel):
    type: Literal["image_url"]
    image_url: Annotated[
        ImageUrl, BeforeValidator(lambda url: {"url": url} if isinstance(url, str) else url)
    ]


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


def _as_parts(content: Any) -> Any:
    """A text is a list of one text part; null, which assistants may send, has no parts."""
    if content is None:
        return []
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class Message(RequestModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[Part], BeforeValidator(_as_parts)] = Field(
        description="a text, or a list of text and image_url parts"
    )

    @property
    def text(self) -> str:
        """All text of the message."""
        return "".join(part.text for part in self.content if isinstance(part, TextPart))


class StreamOptions(RequestModel):
    include_usage: bool = False


class JsonSchema(RequestModel):
    name: str = ""
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(RequestModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatRequest(RequestModel):
    """The body of POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    model: str | None = Field(None, description="the id that /v1/models lists; may be left out")
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, description="0 by default")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, description="0 draws among all tokens")
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
    seed: int | None = None
    ignore_eos: bool | None = Field(None, description="go on past an end token, to measure")
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=1000)]] | None,
        BeforeValidator(lambda stop: [stop] if isinstance(stop, str) else stop),
    ] = Field(None, max_length=16, description="a text, or a list of texts")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    n: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None
    image_size: int | None = Field(None, description="an image size that /v1/models lists")


class SeeRequest(RequestModel):
    """The body of POST /v1/see, where it is JSON."""

    image: str = Field(min_length=1, description="an image's URL, as in an image_url part")


_Model = TypeVar("_Model", bound=RequestModel)


def parse(model: type[_Model], body: bytes) -> _Model:
    """Check a JSON body.

    Raises:
        ApiError: the body is not JSON, or a field is wrong.
    """
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_JSON_VALUES:
        raise ApiError(
            413,
            f"the body has more than {MAX_JSON_VALUES} JSON values; send a shorter conversation.",
            code="too_many_values",
        )
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _bad_field(error) from None


def unknown_fields(request: RequestModel) -> list[str]:
    """Fields of a request's top level that this server ignores."""
    return sorted(request.model_extra or ())


def _bad_field(error: ValidationError) -> ApiError:
    # A part that is neither text nor image gives an error for each; the deepest says the most.
    found = max(error.errors(include_url=False), key=lambda one: len(one["loc"]))
    if found["type"] == "json_invalid":
        return bad_request(f"the body is not JSON ({found['ctx']['error']}).", code="invalid_json")
    param = _field_name(found["loc"])
    name = param or "the body"
    if found["type"] == "missing":
        return bad_request(f"{name} is missing.", param, "missing_field")
    # reprlib cuts values: an image of megabytes may stand where a number belongs.
    value = reprlib.repr(found["input"])
    return bad_request(f"{name} is {value}. {found['msg']}.", param, "invalid_value")


def _field_name(loc: tuple[int | str, ...]) -> str | None:
    """OpenAI's name of a field, like messages.0.content.1.text."""
    # pydantic puts the kind of a content part between its number and its fields.
    kept = [
        str(step)
        for at, step in enumerate(loc)
        if not (at >= 2 and loc[at - 2] == "content" and isinstance(loc[at - 1], int))
    ]
    return ".".join(kept) or None
