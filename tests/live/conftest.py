"""A real server on a loopback socket, in a thread of this process."""

from __future__ import annotations

import logging
import queue
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import uvicorn

from steerserve.runtime import Runtime, build_runtime
from steerserve.server.app import create_app
from tests.tiny import tiny_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

LONG_CONTEXT = 8192
"""So that an answer that is not stopped takes much longer than any of these tests."""
KEY = "inference-key"


class LiveServer:
    """Where a running server is, and what it serves."""

    def __init__(self, runtime: Runtime, port: int) -> None:
        self.runtime = runtime
        self.port = port
        self.url = f"http://127.0.0.1:{port}/v1"


@contextmanager
def serving(runtime: Runtime) -> Iterator[LiveServer]:
    """Serve `runtime` until the block ends; connections wait in the socket's queue until the server accepts."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    config = uvicorn.Config(create_app(runtime), log_config=None, access_log=False, timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="uvicorn")
    with runtime:
        thread.start()
        try:
            yield LiveServer(runtime, listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Serve the tiny model with two slots and a key."""
    engine, server = (
        {"slots": 2, "threads": 1},
        {"api_keys": [KEY], "keep_alive_s": 1, "drain_s": 1, "max_body_bytes": 65536},
    )
    folder = tmp_path_factory.mktemp("live")
    with serving(build_runtime(tiny_settings(folder, context=LONG_CONTEXT, engine=engine, server=server))) as started:
        yield started


@pytest.fixture
def log_lines() -> Iterator[queue.Queue[str]]:
    """Collect the lines of finished requests, which a test can wait for."""
    lines: queue.Queue[str] = queue.Queue()

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.put(record.getMessage())

    logger = logging.getLogger("steerserve.server.summary")
    handler = Collector()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(before)
