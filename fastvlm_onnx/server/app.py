"""The application: routes, and the model that is opened while the server already listens."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from fastvlm_onnx.errors import FastVLMError
from fastvlm_onnx.server.admission import Admission
from fastvlm_onnx.server.chat_question import Questions
from fastvlm_onnx.server.completions import ChatCompletions
from fastvlm_onnx.server.docs_page import docs_page
from fastvlm_onnx.server.errors import ApiError, api_error, not_found, unavailable
from fastvlm_onnx.server.fetching import Fetcher
from fastvlm_onnx.server.gate import Gate
from fastvlm_onnx.server.metrics import CONTENT_TYPE, Metrics
from fastvlm_onnx.server.openapi import openapi
from fastvlm_onnx.server.page_routes import page_routes
from fastvlm_onnx.server.pictures import Pictures
from fastvlm_onnx.server.request_log import RequestLog
from fastvlm_onnx.server.seeing import Seeing
from fastvlm_onnx.server.service import Service
from fastvlm_onnx.server.settings import Settings

Endpoint = Callable[[Request, Service], Awaitable[Response]]

log = logging.getLogger(__name__)


class Server:
    """The state of one server.

    Attributes:
        service: the open model; None while it loads.
        failure: the reason why the model did not open.
        admission: counts the answers and bytes of all requests.
        is_draining: the server was told to stop.
        app: the ASGI application.
    """

    def __init__(
        self,
        settings: Settings,
        open_service: Callable[[], Service],
        *,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        """Make the application.

        Args:
            open_service: opens the model; runs in a thread when the application starts.
            on_failure: is called where the model did not open.
        """
        self.settings = settings
        self.service: Service | None = None
        self.failure: Exception | None = None
        self.is_draining = False
        self._open_service, self._on_failure = open_service, on_failure
        self.admission = Admission(settings)
        self._metrics = Metrics()
        self._pictures = Pictures(settings, Fetcher(settings))
        self._chat = ChatCompletions(
            Questions(settings, self._pictures), self._metrics, log_prompts=settings.log_prompts
        )
        self._seeing = Seeing(
            self._pictures,
            orient=settings.orient,
            max_workers=settings.max_running + settings.max_waiting,
        )
        self.app = self._application()

    async def end_answers(self) -> None:
        """Take no more questions, and cancel the answers that run after the grace."""
        service = self.service
        if service is not None:
            grace = self.settings.grace_seconds
            await asyncio.to_thread(service.scheduler.close, grace)

    def _application(self) -> Starlette:
        settings = self.settings
        middleware = [Middleware(RequestLog, metrics=self._metrics)]
        if settings.allow_origins:
            middleware.append(
                Middleware(
                    CORSMiddleware,
                    allow_origins=settings.allow_origins,
                    allow_methods=["GET", "POST"],
                    allow_headers=["Authorization", "Content-Type"],
                    expose_headers=["Retry-After", "x-request-id"],
                )
            )
        middleware.append(Middleware(Gate, settings=settings, admission=self.admission))
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self._asking(self._chat.answer), methods=["POST"]),
                Route("/v1/see", self._asking(self._seeing.see), methods=["POST"]),
                Route("/v1/models", self._asking(_models)),
                Route("/v1/models/{name:path}", self._asking(_model)),
                Route("/health", self._health),
                Route("/metrics", self._show_metrics),
                Route("/openapi.json", _openapi),
                Route("/docs", docs_page),
                *page_routes(),
            ],
            middleware=middleware,
            exception_handlers={
                ApiError: _error_response,
                FastVLMError: _error_response,
                HTTPException: _error_response,
                ClientDisconnect: _no_response,
            },
            lifespan=self._lifespan,
        )

    def _asking(self, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        """An endpoint that needs the open model."""

        async def answer(request: Request) -> Response:
            if self.is_draining:
                raise unavailable("the server is stopping; ask again in a moment.")
            if self.service is None:
                raise unavailable("Loading model")
            try:
                return await endpoint(request, self.service)
            except (ApiError, FastVLMError, HTTPException, ClientDisconnect):
                raise
            except Exception as error:
                # Starlette would answer in plain text, after the request's line was logged.
                return await _error_response(request, error)

        return answer

    async def _health(self, _: Request) -> Response:
        if self.service is None or self.is_draining:
            reason = "Loading model" if not self.is_draining else "the server is stopping"
            return unavailable(reason).response()
        return JSONResponse({"status": "ok"})

    async def _show_metrics(self, _: Request) -> Response:
        return Response(self._metrics.text(), media_type=CONTENT_TYPE)

    # --- the model's life ----------------------------------------------------------------------

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        opening = asyncio.create_task(self._open())
        try:
            yield
        finally:
            # A thread cannot be stopped, so a model that is still loading is waited for.
            with suppress(Exception):
                await opening
            await asyncio.to_thread(self._close)

    async def _open(self) -> None:
        try:
            service = await asyncio.to_thread(self._open_service)
        except Exception as error:
            self.failure = error
            self._on_failure()
            return
        self._metrics.follow(service.scheduler.stats)
        self.service = service
        log.info("model %s is ready (%s)", service.name, service.fingerprint)

    def _close(self) -> None:
        service, self.service = self.service, None
        if service is not None:
            service.scheduler.close(grace=0)


async def _models(_: Request, service: Service) -> Response:
    return JSONResponse({"object": "list", "data": [service.card()]})


async def _model(request: Request, service: Service) -> Response:
    service.check_model(request.path_params["name"])
    return JSONResponse(service.card())


async def _openapi(_: Request) -> Response:
    return JSONResponse(openapi())


async def _error_response(request: Request, error: Exception) -> Response:
    """The response to a request that failed."""
    if isinstance(error, HTTPException):  # Starlette's own: no such path, no such method
        return not_found(request.method, request.url.path, error).response()
    failure = api_error(error)
    if failure.status >= 500 and not isinstance(error, ApiError):
        log.error("a request failed", exc_info=error)
    request.state.facts["error"] = failure.code or failure.kind
    return failure.response()


async def _no_response(request: Request, _: Exception) -> Response:
    """The client went away: nothing reads this response."""
    request.state.facts["cancelled"] = True
    return PlainTextResponse("", 499)
