"""The description of the API in OpenAPI's form."""

from functools import cache
from typing import Any, Final

from pydantic.json_schema import models_json_schema

from fastvlm_onnx.server.schemas import ChatRequest, SeeRequest
from fastvlm_onnx.version import __version__

_REFS: Final = "#/components/schemas/{model}"
_ERRORS: Final = {
    "400": "a field, an image or the prompt cannot be used",
    "401": "the key is missing or wrong",
    "403": "the Host or Origin header is not allowed",
    "404": "no such model, or no such seen image",
    "413": "the body is too large",
    "429": "the server or the client has as many answers as it may; see Retry-After",
    "503": "the model is loading, or the server is stopping",
}


@cache
def openapi() -> dict[str, Any]:
    """The document at /openapi.json."""
    names, definitions = models_json_schema(
        [(ChatRequest, "validation"), (SeeRequest, "validation")], ref_template=_REFS
    )
    chat, see = (names[model, "validation"] for model in (ChatRequest, SeeRequest))
    file = {"schema": {"type": "string", "format": "binary"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "fastvlm-onnx", "version": __version__},
        "components": {
            "schemas": definitions["$defs"] | {"Error": _error()},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
        "paths": {
            "/v1/chat/completions": {
                "post": _operation(
                    "Answer the last message of a conversation with images. With `stream` the "
                    "answer comes as server-sent events, and ends with `data: [DONE]`.",
                    {"application/json": {"schema": chat}},
                )
            },
            "/v1/see": {
                "post": _operation(
                    "Encode and prefill an image before the question about it comes. The `id` of "
                    "the answer is the URL of an image_url part.",
                    {"application/json": {"schema": see}, "image/*": file},
                )
            },
            "/v1/models": {"get": _operation("List the model that this server has.")},
            "/v1/models/{id}": {
                "get": _operation("Show the model.")
                | {
                    "parameters": [
                        {
                            "name": "id",
                            "in": "path",
                            "required": True,
                            "schema": {"type": "string"},
                        }
                    ]
                }
            },
            "/health": {"get": _operation("Say whether the model is loaded. Needs no key.")},
            "/metrics": {"get": _operation("Show counters in Prometheus's text format.")},
        },
    }


def _operation(summary: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": _REFS.format(model="Error")}}}
    described: dict[str, Any] = {
        "summary": summary,
        "responses": {"200": {"description": "done"}}
        | {status: {"description": text, "content": error} for status, text in _ERRORS.items()},
    }
    if content is not None:
        described["requestBody"] = {"required": True, "content": content}
    return described


def _error() -> dict[str, Any]:
    text = {"type": "string"}
    optional = {"type": ["string", "null"]}
    fields = {"message": text, "type": text, "param": optional, "code": optional}
    return {
        "type": "object",
        "properties": {"error": {"type": "object", "properties": fields}},
    }
