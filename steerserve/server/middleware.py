"""The middleware of every HTTP request, as plain ASGI: its id, its log line, and the answer to unexpected errors."""

from __future__ import annotations

import logging
import string
import uuid
from typing import TYPE_CHECKING

from sse_starlette.sse import SendTimeoutError
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect

from steerserve.server.errors import internal_error_response
from steerserve.server.summary import RequestSummary

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from steerserve.server.metrics import Metrics

logger = logging.getLogger(__name__)

REQUEST_ID = "x-request-id"
_MAX_ID_CHARS = 128
_ID_CHARS = frozenset(string.printable) - frozenset(string.whitespace)
_QUIET_PATHS = frozenset({"/health", "/ready", "/metrics"})
_UNMATCHED = "unmatched"


class RequestTracing:
    """Gives each request an id, which its answer has too, and logs and counts the request when it is over."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        """Wrap `app`; count in `metrics`."""
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; other ASGI events pass through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = clean_request_id(Headers(scope=scope).get(REQUEST_ID))
        summary = RequestSummary(request_id=request_id, method=scope["method"][:16])
        summary.is_quiet = scope["path"] in _QUIET_PATHS
        scope.setdefault("state", {})["summary"] = summary

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                summary.status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            summary.route = getattr(scope.get("route"), "path", _UNMATCHED)
            summary.log()
            self._metrics.count_request(summary.method, summary.route, summary.status)


class BugBarrier:
    """Answers unexpected errors with status 500; their tracebacks go only to the log."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap `app`."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; other ASGI events pass through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_started = False

        async def watch(message: Message) -> None:
            nonlocal has_started
            has_started = has_started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except (ClientDisconnect, SendTimeoutError):
            logger.debug("the client of request %s went away", scope["state"]["summary"].request_id)
        except Exception:
            logger.exception("request %s failed", scope["state"]["summary"].request_id)
            if has_started:
                raise  # The server must cut the connection, or the client would take half an answer for a whole one.
            await internal_error_response()(scope, receive, send)


def clean_request_id(sent: str | None) -> str:
    """Return the client's id, reduced to at most 128 visible ASCII characters, or a new id if none are left."""
    cleaned = "".join(character for character in sent or "" if character in _ID_CHARS)[:_MAX_ID_CHARS]
    return cleaned or f"req_{uuid.uuid4().hex}"
