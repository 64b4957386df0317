"""A server that streams canned tokens, for the bench to measure."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from starlette.requests import Request


@dataclass
class Stub:
    """What the stub answers, and what it was asked."""

    has_dictionary: bool = True
    models: list[dict[str, Any]] | None = field(
        default_factory=lambda: [{"id": "tiny"}, {"id": "tiny@p", "parent": "tiny"}]
    )
    key: str | None = None
    refuse_from: int | None = None
    """The number of the completion request from which on all are refused."""
    failure: object = None
    """An error that is sent in the stream."""
    empty_streams: bool = False
    bodies: list[dict[str, Any]] = field(default_factory=list)

    async def get_models(self, request: Request) -> Response:
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return error(401, "Send an API key.")
        return JSONResponse({"object": "list", "data": self.models})

    async def get_dictionaries(self, _: Request) -> Response:
        if not self.has_dictionary:
            return error(404, "Unknown URL.")
        listed = [{"id": "other", "d_sae": 8, "default": False}, {"id": "main", "d_sae": 64, "default": True}]
        return JSONResponse({"object": "list", "data": listed})

    async def get_version(self, _: Request) -> Response:
        return JSONResponse({"version": "0.0.1", "torch": "9.9"})

    async def get_health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        if self.refuse_from is not None and len(self.bodies) >= self.refuse_from:
            return error(503, "The queue is full.")
        return StreamingResponse(self._events(body["max_tokens"]), media_type="text/event-stream")

    async def _events(self, num_tokens: int) -> AsyncIterator[str]:
        yield ": a comment\n\n"
        if self.failure is not None:
            yield event({"error": self.failure})
        for _ in range(0 if self.empty_streams else num_tokens):
            yield event({"choices": [{"index": 0, "text": " a"}], "usage": None})
            await asyncio.sleep(0)
        yield event({"choices": [], "usage": {"completion_tokens": num_tokens, "prompt_tokens": 24}})
        yield "data: [DONE]\n\n"

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/models", self.get_models),
                Route("/v1/dictionaries", self.get_dictionaries),
                Route("/version", self.get_version),
                Route("/health", self.get_health),
                Route("/v1/completions", self.complete, methods=["POST"]),
            ]
        )


@contextlib.contextmanager
def served(stub: Stub) -> Iterator[str]:
    """Serve the stub on loopback; gives its URL."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    server = uvicorn.Server(uvicorn.Config(stub.app(), log_config=None, lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def event(data: object) -> str:
    return f"data: {json.dumps(data)}\n\n"


def error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "t", "param": None, "code": None}}, status)
