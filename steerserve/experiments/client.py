"""Asking a steerserve server for comparisons: one behind an address, or an application in this process. Knows HTTP."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import httpx

from steerserve.core.errors import ConfigError, InvalidRequestError, SteerserveError

if TYPE_CHECKING:
    from collections.abc import Mapping

_TIMEOUT = httpx.Timeout(10.0, read=None)
"""A comparison takes as long as it takes: on a busy CPU that is minutes."""
_IN_PROCESS = "http://127.0.0.1"
_BUSY = frozenset({409, 429, 503})
_MAX_ATTEMPTS = 8
_LONGEST_WAIT_S = 30.0
_UNAUTHORISED = frozenset({401, 403})
_SHOWN_CHARS = 300


class ServerError(SteerserveError):
    """The server cannot be reached, or failed; the same command can be tried again."""


@dataclass(frozen=True, slots=True)
class Served:
    """What a server is, as far as it says so."""

    model: str
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of steerserve and its libraries, the device and the number format too."""
    dictionaries: tuple[Mapping[str, Any], ...] = ()


class CompareClient:
    """Sends comparisons to one server. One event loop uses it."""

    def __init__(self, http: httpx.AsyncClient, name: str) -> None:
        """Ask through `http`, which this closes in the end; `name` is what messages call the server."""
        self._http = http
        self._name = name

    @classmethod
    def at(cls, url: str, key: str | None) -> Self:
        """Ask the server at an address, with or without the /v1 that OpenAI's clients want.

        Raises:
            ConfigError: it is none of a web server.
        """
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"{url!r} is no address of a server, such as http://127.0.0.1:8000.")
        base = url.rstrip("/").removesuffix("/v1")
        return cls(httpx.AsyncClient(base_url=base, headers=_headers(key), timeout=_TIMEOUT), base)

    @classmethod
    def inside(cls, app: Any, key: str | None) -> Self:  # noqa: ANN401 any ASGI application
        """Ask an application in this process, without a socket."""
        transport = httpx.ASGITransport(app)
        http = httpx.AsyncClient(transport=transport, base_url=_IN_PROCESS, headers=_headers(key), timeout=_TIMEOUT)
        return cls(http, "the server in this process")

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def served(self) -> Served:
        """Return what is served.

        Raises:
            ServerError: it cannot be reached, or is no steerserve.
            InvalidRequestError: it wants a key.
        """
        models = await self._answered("GET", "/v1/models")
        version = await self._answered("GET", "/version")
        listed = await self._answered("GET", "/v1/dictionaries")
        try:
            model = next(one["id"] for one in models["data"] if not one.get("parent"))
            versions = {"steerserve": version["version"], **{k: v for k, v in version.items() if k != "version"}}
            return Served(model, versions, tuple(listed["data"]))
        except (KeyError, TypeError, StopIteration) as error:
            raise ServerError(f"{self._name} is no steerserve server.") from error

    async def compare(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return a comparison.

        Raises:
            InvalidRequestError: the server refuses it; `param` is what it speaks of.
            ServerError: it fails, or cannot be reached.
        """
        return await self._answered("POST", "/v1/compare", body)

    async def _answered(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        for attempt in range(_MAX_ATTEMPTS):
            try:
                response = await self._http.request(method, path, json=body)
            except httpx.HTTPError as error:
                reason = str(error) or type(error).__name__
                raise ServerError(f"{self._name} cannot be reached, or broke off ({reason}).") from error
            if response.is_success:
                return self._object(response)
            if response.status_code not in _BUSY or attempt + 1 == _MAX_ATTEMPTS:
                break
            await asyncio.sleep(min(_seconds(response.headers.get("retry-after")), _LONGEST_WAIT_S))
        raise self._error(response)

    def _object(self, response: httpx.Response) -> dict[str, Any]:
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ServerError(f"{self._name} answers what is no JSON object: {response.text[:_SHOWN_CHARS]}")
        return answer

    def _error(self, response: httpx.Response) -> SteerserveError:
        try:
            said = response.json()["error"]
            message, param = str(said["message"]), said.get("param")
        except (ValueError, KeyError, TypeError, AttributeError):
            message, param = f"status {response.status_code}: {response.text[:_SHOWN_CHARS]}", None
        if response.status_code in _UNAUTHORISED:
            return ConfigError(f"{self._name} refuses the key: {message} Put it in STEERSERVE_API_KEY.")
        is_refusal = response.is_client_error and response.status_code not in _BUSY
        if is_refusal:
            return InvalidRequestError(message, param=param if isinstance(param, str) else None)
        return ServerError(f"{self._name} does not answer: {message}")


def _headers(key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}


def _seconds(header: str | None) -> float:
    try:
        return max(float(header or 1), 0.1)
    except ValueError:  # a date
        return 1.0
