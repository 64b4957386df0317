"""What a server answers: objects, refusals that become errors, and events of a stream. Sends nothing itself."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx

from steerserve.core.errors import ConfigError, InvalidRequestError, StartupError, SteerserveError

if TYPE_CHECKING:
    from collections.abc import Mapping

BUSY = frozenset({409, 429, 503})
"""Statuses that mean that the same request may succeed in a moment."""
_UNAUTHORISED = frozenset({401, 403})
_MAX_SHOWN = 300
_LONGEST_WAIT_S = 30.0
_END = "[DONE]"


class ServerError(StartupError):
    """The server cannot be reached, is busy or failed; the same request may succeed later."""


class RefusedError(InvalidRequestError):
    """The server refuses a request; the message, `param` and `code` are the server's."""

    def __init__(self, message: str, *, status: int, param: str | None = None, code: str | None = None) -> None:
        """Keep the HTTP status beside what every error has."""
        super().__init__(message, param=param, code=code)
        self.status = status


def read_object(response: httpx.Response, name: str) -> dict[str, Any]:
    """Return the JSON object that a server answered; `name` is what messages call the server.

    Raises:
        ConfigError: the server refuses the key.
        RefusedError: the server refuses the request.
        ServerError: the server is busy or failed, or its answer is not a JSON object.
    """
    if not response.is_success:
        raise _error(response, name)
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise ServerError(f"{name} did not answer with a JSON object: {response.text[:_MAX_SHOWN]}")
    return answer


def connection_error(error: httpx.HTTPError, name: str) -> ServerError:
    """Return the error for a connection that was not made or was lost."""
    reason = str(error) or type(error).__name__
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        advice = "Start one with `steerserve serve`, or give another URL."
        return ServerError(f"No server answers at {name} ({reason}). {advice}")
    return ServerError(f"The connection to {name} broke off: {reason}.")


def retry_delay_s(response: httpx.Response) -> float:
    """Return how long the server asks to wait before the next attempt, 1 s if it does not say, 30 s at most."""
    try:
        seconds = float(response.headers.get("retry-after", 1))
    except ValueError:  # a date
        seconds = 1.0
    return min(max(seconds, 0.1), _LONGEST_WAIT_S)


class EventReader:
    """Puts the lines of a stream of server-sent events together."""

    def __init__(self, name: str) -> None:
        """Keep what messages call the server."""
        self._name = name
        self._event = ""
        self._data: list[str] = []
        self._is_done = False

    def feed(self, line: str) -> tuple[str, dict[str, Any]] | None:
        """Take the next line; return an event's name (`message` without one) and object if the line ends an event.

        Raises:
            ServerError: the server failed in the stream, or the event is not a JSON object.
        """
        if line:
            field, _, value = line.partition(":")
            if field == "data":
                self._data.append(value.removeprefix(" "))
            elif field == "event":
                self._event = value.removeprefix(" ")
            return None
        event, text = self._event or "message", "\n".join(self._data)
        self._event, self._data = "", []
        if not text:
            return None
        if text == _END:
            self._is_done = True
            return None
        try:
            content = json.loads(text)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise ServerError(f"{self._name} sent an event that is not a JSON object: {text[:_MAX_SHOWN]}")
        if event == "error" or content.keys() == {"error"}:
            raise ServerError(f"{self._name} failed in the stream: {_message(content.get('error'))}")
        return event, content

    def check_done(self) -> None:
        """Check, once there are no more lines, that the server ended the stream.

        Raises:
            ServerError: the end mark is missing.
        """
        if not self._is_done:
            raise ServerError(f"{self._name} broke the stream off before its end.")


def _error(response: httpx.Response, name: str) -> SteerserveError:
    status = response.status_code
    try:
        body = response.json()
        error = body["error"] if isinstance(body, dict) else body
    except (ValueError, KeyError):
        error = response.text[:_MAX_SHOWN]
    message = _message(error)
    if status in _UNAUTHORISED:
        return ConfigError(
            f"{name} refuses the key, with status {status}: {message} Put the key in STEERSERVE_API_KEY."
        )
    if response.is_client_error and status not in BUSY:
        described: Mapping[str, Any] = error if isinstance(error, dict) else {}
        param, code = (described.get(field) for field in ("param", "code"))
        if not described:
            message = f"{response.request.url} answered {status}: {message}"
        return RefusedError(
            message,
            status=status,
            param=param if isinstance(param, str) else None,
            code=code if isinstance(code, str) else None,
        )
    return ServerError(f"{name} answered {status}: {message}")


def _message(error: object) -> str:
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
