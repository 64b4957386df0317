"""A language model behind a real socket that labels what it is shown, or misbehaves in ways that it is told."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.requests import Request


@dataclass
class Clever:
    """A model that names the marked token, and finds it again; it can be told to misbehave."""

    statuses: list[int] = field(default_factory=list)
    """Answered first, one a request."""
    retry_after: str = "0"
    says: str | None = None
    """In place of a label."""
    chooses: str | None = None
    """In place of what it finds."""
    hangs: bool = False
    """Answers nothing until the client goes away."""
    refuses: dict[str, int] = field(default_factory=dict)
    """Fields that it does not know, with the status that it says so with."""
    usage: object = 100
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.keys.add(request.headers.get("authorization", ""))
        if self.statuses:
            return JSONResponse({"error": {"message": "no"}}, self.statuses.pop(0), {"retry-after": self.retry_after})
        for name, status in self.refuses.items():
            if name in body:
                return JSONResponse({"error": {"message": f"Unsupported parameter: '{name}'", "param": name}}, status)
        while self.hangs and (await request.receive())["type"] != "http.disconnect":
            pass
        text = body["messages"][1]["content"]
        if self.chooses is not None and text.startswith("Description:"):
            answer = self.chooses
        elif description := re.match(r"Description: about (\w)", text):
            pieces = re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE)
            answer = ", ".join(number for number, piece in pieces if description[1] in piece) or "none"
        else:
            marked = re.search(r"<<(\w)>>", text)
            answer = self.says if self.says is not None else f'"about {marked[1] if marked else "nothing"}."'
        content = {"choices": [{"message": {"content": answer}}], "usage": {"total_tokens": self.usage}}
        return Response(json.dumps(content), media_type="application/json")


@contextlib.contextmanager
def answering(model: Clever) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    app = Starlette(routes=[Route("/v1/chat/completions", model.complete, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join()
