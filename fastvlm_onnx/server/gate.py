"""The checks that come before a request is read: host, origin, key, room, size of the body."""

import asyncio
import hashlib
import hmac
from contextlib import nullcontext
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastvlm_onnx.server.admission import Admission, Ticket
from fastvlm_onnx.server.errors import ApiError
from fastvlm_onnx.server.settings import LOOPBACK, Settings

# Paths without a key: the state of the server, and the page, which asks its user for the key.
_OPEN_PATHS: Final = frozenset({"/", "/health"})
_OPEN_PREFIX: Final = "/page/"
# Paths that cost time of the model.
_ANSWERING_PATHS: Final = frozenset({"/v1/chat/completions", "/v1/see"})
# A refused client may still be sending. It reads the refusal after its last byte.
_DISCARD_SECONDS: Final = 5.0


class Gate:
    """Refuses requests that must not be read, and counts bytes while the others come in."""

    def __init__(self, app: ASGIApp, *, settings: Settings, admission: Admission) -> None:
        self._app, self._settings, self._admission = app, settings, admission
        key = settings.api_key
        self._key_digest = None if key is None else _digest(key.encode())
        self._hosts = self._accepted_hosts()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check_host(headers)
            self._check_origin(headers)
            if not _is_open(scope):
                self._check_key(headers)
            self._check_length(headers)
            is_answering = scope["method"] == "POST" and scope["path"] in _ANSWERING_PATHS
            address = scope["client"][0] if scope.get("client") else ""
            with self._admission.admit(address) if is_answering else nullcontext() as ticket:
                scope.setdefault("state", {})["ticket"] = ticket
                await self._app(scope, self._capped(receive, ticket), send)
        except ApiError as error:
            await _discard(receive, self._settings.max_body_bytes)
            await error.response()(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        """Refuse names that another site's DNS points at this machine."""
        host = headers.get("host", "")
        if self._hosts is not None and _without_port(host) not in self._hosts:
            raise ApiError(
                403,
                f"the Host header is {host[:100]!r}, which this server does not answer to; start "
                "it with --allow-host, or with a key.",
                kind="permission_error",
                code="host_not_allowed",
            )

    def _check_origin(self, headers: Headers) -> None:
        """Refuse pages of other sites; browsers send their requests even without CORS."""
        origin = headers.get("origin")
        allowed = self._settings.allow_origins
        if origin is None or "*" in allowed or origin in allowed:
            return
        if origin.partition("://")[2] != headers.get("host"):
            raise ApiError(
                403,
                f"pages of {origin[:100]!r} may not call this server; start it with "
                "--allow-origin.",
                kind="permission_error",
                code="origin_not_allowed",
            )

    def _check_key(self, headers: Headers) -> None:
        if self._key_digest is None:
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = _digest(key.strip().encode())
        if scheme.lower() != "bearer" or not hmac.compare_digest(given, self._key_digest):
            raise ApiError(
                401,
                "the API key is missing or wrong; send it as `Authorization: Bearer KEY`.",
                kind="authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _check_length(self, headers: Headers) -> None:
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._settings.max_body_bytes:
            raise self._too_large()

    def _capped(self, receive: Receive, ticket: Ticket | None) -> Receive:
        """Count a body's bytes and time while it comes in."""
        read, is_complete = 0, False
        deadline = asyncio.get_running_loop().time() + self._settings.body_seconds

        async def counted() -> Message:
            nonlocal read, is_complete
            if is_complete:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise ApiError(
                    408,
                    f"the body did not come in {self._settings.body_seconds:g} seconds.",
                    code="body_timeout",
                    headers={"Connection": "close"},
                ) from None
            size = len(message.get("body", b""))
            read += size
            is_complete = not message.get("more_body", False)
            if read > self._settings.max_body_bytes:
                if not is_complete:
                    await _discard(receive, self._settings.max_body_bytes)
                raise self._too_large()
            if ticket is not None:
                ticket.add_bytes(size)
            return message

        return counted

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            f"the body has more than {self._settings.max_body_bytes:,} bytes; send fewer or "
            "smaller images.",
            code="body_too_large",
        )

    def _accepted_hosts(self) -> frozenset[str] | None:
        """Values of the Host header; None accepts all.

        A key already keeps other sites out, and a server on a public address has names that it
        does not know.
        """
        settings = self._settings
        if settings.allow_hosts:
            return LOOPBACK | frozenset(map(str.lower, settings.allow_hosts))
        if settings.api_key is None and settings.host in LOOPBACK:
            return LOOPBACK
        return None


def _is_open(scope: Scope) -> bool:
    path: str = scope["path"]
    is_page = path in _OPEN_PATHS or path.startswith(_OPEN_PREFIX)
    return is_page and scope["method"] in ("GET", "HEAD")


def _without_port(host: str) -> str:
    host = host.lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _digest(key: bytes) -> bytes:
    """Of one length for all keys, so that a comparison says nothing about the length."""
    return hashlib.sha256(key).digest()


async def _discard(receive: Receive, most_bytes: int) -> None:
    """Read on for a while and keep nothing."""
    try:
        async with asyncio.timeout(_DISCARD_SECONDS):
            while most_bytes > 0:
                message = await receive()
                most_bytes -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
    except TimeoutError:
        return
