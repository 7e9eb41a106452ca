"""POST /v1/chat/completions: a question to the scheduler, its answers to the client."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from fastvlm_onnx.runtime.answering.results import Generation, Piece
from fastvlm_onnx.server.answers import Answers, until_disconnect
from fastvlm_onnx.server.chat_objects import (
    JSON,
    AnswerWriter,
    Header,
    timings_of,
    usage_of,
)
from fastvlm_onnx.server.chat_question import Questions
from fastvlm_onnx.server.errors import ApiError, api_error
from fastvlm_onnx.server.metrics import Metrics
from fastvlm_onnx.server.request_log import note
from fastvlm_onnx.server.schemas import ChatRequest, parse, unknown_fields
from fastvlm_onnx.server.service import Service

# Proxies close a stream that is silent for a minute.
PING_SECONDS: Final = 15.0
_SSE_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

log = logging.getLogger(__name__)


class AnswerStream(StreamingResponse):
    """Server-sent events, whose answers are cancelled where the client goes away."""

    def __init__(self, events: AsyncIterator[str], answers: Answers) -> None:
        super().__init__(events, media_type="text/event-stream", headers=_SSE_HEADERS)
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The events cannot see to it: they may never have begun.
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answers.close()


class ChatCompletions:
    """Answers chat requests."""

    def __init__(self, questions: Questions, metrics: Metrics, *, log_prompts: bool) -> None:
        self._questions, self._metrics, self._log_prompts = questions, metrics, log_prompts

    async def answer(self, request: Request, service: Service) -> Response:
        """Answer one request, streamed or not.

        The first piece of a stream is awaited before the status is sent, so that an image that
        cannot be decoded is an error of HTTP. After PING_SECONDS the stream begins in any case.

        Raises:
            ApiError: the request is wrong or refused.
            FastVLMError: the question cannot be answered.
            ClientDisconnect: the client went away.
        """
        chat = await _read(request)
        header = Header(service.name, service.fingerprint)
        note(request, id=header.id, stream=bool(chat.stream))
        if ignored := unknown_fields(chat):
            note(request, ignored_fields=ignored)
        if self._log_prompts:
            note(request, prompt=[f"{message.role}: {message.text}" for message in chat.messages])
        ticket = request.state.ticket
        question = await until_disconnect(
            request, self._questions.of(chat, service, ticket.add_bytes)
        )
        ticket.add_answers(question.choices - 1)
        is_streamed = bool(chat.stream)
        writer = AnswerWriter(
            header,
            service.model.template.tokenizer,
            has_usage=chat.stream_options is not None and chat.stream_options.include_usage,
        )
        answers = Answers(
            service.scheduler.submit_many(question.request, question.choices), self._metrics
        )
        # The scheduler drops the images when they are encoded, and their text must not stay here.
        del chat, question
        try:
            if not is_streamed:
                await until_disconnect(request, answers.all_ended())
                self._note_end(request, answers.in_order())
                return JSONResponse(writer.completion(answers.in_order()))
            first = await until_disconnect(request, answers.next(PING_SECONDS))
        except BaseException:
            answers.close()
            raise
        return AnswerStream(self._events(request, writer, answers, first), answers)

    async def _events(
        self,
        request: Request,
        writer: AnswerWriter,
        answers: Answers,
        event: tuple[int, Piece] | None,
    ) -> AsyncIterator[str]:
        """The events of a stream. A client that goes away closes this iterator.

        Args:
            event: the first piece with its answer's index; None where it is still to come.
        """
        try:
            while True:
                timings = timings_of(answers.generations[0]) if answers.have_ended else None
                if event is None:
                    yield ": waiting\n\n"
                else:
                    for chunk in writer.chunks(*event, timings):
                        yield _event(chunk)
                if timings is not None:
                    break
                event = await answers.next(PING_SECONDS)
            self._note_end(request, answers.in_order())
            for chunk in writer.end(answers.in_order(), timings):
                yield _event(chunk)
            yield "data: [DONE]\n\n"
        except (asyncio.CancelledError, GeneratorExit):
            note(request, cancelled=True)
            raise
        except Exception as error:
            failure = api_error(error)
            note(request, error=failure.code or failure.kind)
            if failure.status >= 500 and not isinstance(error, ApiError):
                log.exception("an answer failed in its middle")
            yield _event(failure.body())

    def _note_end(self, request: Request, generations: Sequence[Generation]) -> None:
        usage = usage_of(generations)
        note(
            request,
            prompt_tokens=usage["prompt_tokens"],
            cached_tokens=generations[0].cached_tokens,
            completion_tokens=usage["completion_tokens"],
            first_token_ms=timings_of(generations[0])["first_token_ms"],
            finish=[generation.finish_reason for generation in generations],
        )
        if self._log_prompts:
            note(request, answers=[generation.text for generation in generations])


async def _read(request: Request) -> ChatRequest:
    # Request.body() would keep the body as long as the answer takes.
    return parse(ChatRequest, b"".join([piece async for piece in request.stream()]))


def _event(data: JSON) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"
