"""Errors as OpenAI's API writes them: a status, and `{"error": {message, type, param, code}}`."""

from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from fastvlm_onnx.errors import (
    BusyError,
    ClosedError,
    FastVLMError,
    InputError,
    NotSeenError,
    PromptTooLongError,
)


class ApiError(Exception):
    """A request that gets an error instead of an answer.

    Attributes:
        status: HTTP status.
        message: found, expected, what to do.
        kind: OpenAI's `type`.
        param: the field of the request that is wrong, if one is.
        code: a name that programs can compare.
        headers: headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.param, self.code, self.headers = param, code, headers or {}

    def body(self) -> dict[str, Any]:
        """The JSON object of the error."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, headers=self.headers)


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that this server cannot answer as it is."""
    return ApiError(400, message, param=param, code=code)


def busy(message: str, code: str, retry_seconds: int = 1) -> ApiError:
    """A request that may succeed later."""
    return ApiError(
        429,
        message,
        kind="rate_limit_error",
        code=code,
        headers={"Retry-After": str(retry_seconds)},
    )


def unavailable(message: str) -> ApiError:
    """A request that comes while the model loads or the server stops."""
    return ApiError(
        503, message, kind="unavailable_error", code="unavailable", headers={"Retry-After": "2"}
    )


def api_error(error: Exception) -> ApiError:
    """The error that a client gets for an exception of this package.

    An exception of any other class is a fault of this program: its text stays in the log.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, PromptTooLongError):
        return bad_request(str(error), "messages", "context_length_exceeded")
    if isinstance(error, NotSeenError):
        return ApiError(
            404, str(error), kind="not_found_error", param="image_url", code="see_not_found"
        )
    if isinstance(error, InputError):
        return bad_request(str(error))
    if isinstance(error, BusyError):
        return busy(str(error), "queue_full")
    if isinstance(error, ClosedError):
        return unavailable("the server is stopping; ask again in a moment.")
    if isinstance(error, FastVLMError):
        return ApiError(500, str(error), kind="server_error", code="provider_error")
    return ApiError(
        500,
        "the server failed on this request; its log has the reason.",
        kind="server_error",
        code="internal_error",
    )


def not_found(method: str, path: str, error: HTTPException) -> ApiError:
    """A path or a method that this server does not have."""
    return ApiError(
        error.status_code,
        f"{method} {path[:200]} is not here ({error.detail}); /docs lists the paths.",
        kind="not_found_error" if error.status_code == 404 else "invalid_request_error",
        code="not_found" if error.status_code == 404 else None,
        headers=dict(error.headers or {}),
    )
