"""Run the server in this process until it is told to stop."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from fastvlm_onnx.errors import InputError
from fastvlm_onnx.server.app import Server
from fastvlm_onnx.server.malloc import share_one_arena
from fastvlm_onnx.server.request_log import configure_logging
from fastvlm_onnx.server.service import Service
from fastvlm_onnx.server.settings import Settings

log = logging.getLogger(__name__)


class DrainingServer(uvicorn.Server):
    """uvicorn, with answers that end before it does.

    At the first signal the server takes no more connections and no more questions. Answers that
    run go on for `grace_seconds`; those that are left are then cancelled. The process exits with 0,
    where uvicorn's own would die of the signal.
    """

    def __init__(self, settings: Settings, open_service: Callable[[], Service]) -> None:
        """Configure uvicorn.

        Args:
            open_service: opens the model, in a thread, while /health already answers 503.
        """
        self.state = Server(settings, open_service, on_failure=self.stop)
        super().__init__(
            uvicorn.Config(
                self.state.app,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=bool(settings.trusted_proxies),
                forwarded_allow_ips=list(settings.trusted_proxies),
                limit_concurrency=settings.max_connections,
                # Answers end by themselves in the grace, or are cancelled, and are then sent.
                timeout_graceful_shutdown=int(settings.grace_seconds) + 5,
                ssl_certfile=settings.ssl_certfile,
                ssl_keyfile=settings.ssl_keyfile,
            )
        )

    def stop(self) -> None:
        """Begin to stop, as at a signal. Any thread may call it."""
        self.should_exit = self.state.is_draining = True

    def handle_exit(self, sig: int, _: FrameType | None) -> None:
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.stop()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        log.info("stopping; running answers have %g seconds", self.state.settings.grace_seconds)
        ending = asyncio.create_task(self.state.end_answers())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()


def listen(settings: Settings) -> socket.socket:
    """A socket that takes connections at the settings' address.

    Raises:
        InputError: the address cannot be listened on.
    """
    is_ipv6 = ":" in settings.host
    family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
    # asyncio sends at once (TCP_NODELAY) only on sockets that name their protocol. Without it the
    # first token of a stream waits 40 ms for the client to acknowledge the headers.
    opened = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # Windows would let two servers share the port
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_ipv6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.bind((settings.host, settings.port))
        opened.listen(2048)
    except OSError as error:
        opened.close()
        raise InputError(
            f"{settings.host} port {settings.port} cannot be listened on "
            f"({error.strerror or error}); choose another --port, or --port 0 for a free one."
        ) from None
    return opened


def run(settings: Settings, open_service: Callable[[], Service]) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        open_service: opens the model.

    Raises:
        InputError: the address cannot be listened on.
        Exception: the model did not open; the reason is the one of `open_service`.
    """
    share_one_arena()
    server = DrainingServer(settings, open_service)
    with listen(settings) as opened:
        configure_logging(as_json=settings.log_json)
        scheme = "https" if settings.ssl_certfile else "http"
        host, port = opened.getsockname()[:2]
        log.info("listening on %s://%s:%d", scheme, f"[{host}]" if ":" in host else host, port)
        server.run(sockets=[opened])
    if server.state.failure is not None:
        raise server.state.failure
