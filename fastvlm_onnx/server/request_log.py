"""A line of the log for each request."""

import json
import logging
import sys
import time
from typing import Any
from uuid import uuid4

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastvlm_onnx.server.metrics import Metrics

log = logging.getLogger("fastvlm_onnx.server.requests")


def note(request: Request, **facts: Any) -> None:
    """Add facts to the request's line."""
    request.state.facts.update(facts)


class RequestLog:
    """Logs each request when its response has ended, with the facts that were noted.

    Prompts and answers are not among them unless the settings ask for it.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        request_id = f"req_{uuid4().hex}"
        facts: dict[str, Any] = {}
        scope.setdefault("state", {})["facts"] = facts
        status = 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", request_id.encode()),
                ]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            seconds = time.perf_counter() - began
            self._metrics.count_response(scope["path"], status)
            log.info(
                "",
                extra={
                    "facts": {
                        "request": request_id,
                        "client": scope["client"][0] if scope.get("client") else "",
                        "method": scope["method"],
                        "path": scope["path"],
                        "status": status,
                        "seconds": round(seconds, 4),
                        **facts,
                    }
                },
            )


class LineFormatter(logging.Formatter):
    """Lines for people: the message, or a request's facts as NAME=VALUE."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        if facts := getattr(record, "facts", None):
            record = logging.makeLogRecord(record.__dict__)
            record.msg, record.args = " ".join(f"{k}={_shown(v)}" for k, v in facts.items()), ()
        return super().format(record)


class JsonFormatter(logging.Formatter):
    """A JSON object for each record."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {"time": round(record.created, 3), "level": record.levelname}
        entry |= getattr(record, "facts", None) or {"message": record.getMessage()}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def configure_logging(*, as_json: bool) -> None:
    """Send the log of this package to stderr, and uvicorn's warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else LineFormatter())
    for name, level in (("fastvlm_onnx", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def _shown(value: Any) -> str:
    """A value on one line; JSON keeps line breaks and escapes of a client's text visible."""
    if isinstance(value, str) and value.isprintable() and " " not in value:
        return value
    return json.dumps(value, ensure_ascii=True)
