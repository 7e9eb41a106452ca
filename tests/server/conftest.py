"""Fixtures of the server's tests."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from live_server import LiveServer, live_server, service_of, wait_until

import fastvlm_onnx
from fastvlm_onnx import FastVLM


@pytest.fixture(scope="session")
def served_model(package: Path) -> Iterator[FastVLM]:
    """A model of the servers' own: its caches hold no answers of other tests."""
    with fastvlm_onnx.load(package) as model:
        yield model


@pytest.fixture(scope="session")
def server(served_model: FastVLM) -> Iterator[LiveServer]:
    """A server with the default settings."""
    with live_server(lambda: service_of(served_model)) as live:
        wait_until(live.is_ready)
        yield live


@pytest.fixture
def serve(served_model: FastVLM) -> Iterator[Callable[..., LiveServer]]:
    """Start a server with settings of one test's own."""
    with ExitStack() as stack:

        def start(**settings: Any) -> LiveServer:
            limits = {
                "max_rows": settings.get("max_running", 8),
                "max_waiting": settings.get("max_waiting", 64),
                "see_seconds": settings.get("see_seconds", 600.0),
            }
            live = stack.enter_context(
                live_server(lambda: service_of(served_model, **limits), **settings)
            )
            wait_until(live.is_ready)
            return live

        yield start
