"""A client of one steerserve server: JSON objects and streams of events, for threads and for an event loop."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Self

import httpx

from steerserve.client.answers import BUSY, EventReader, connection_error, read_object, retry_delay_s
from steerserve.core.errors import ConfigError
from steerserve.core.keys import KEY_VARIABLES, check_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

IN_PROCESS = "http://127.0.0.1"
_CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 600.0
_LARGEST_PORT = 65_535


def base_url(url: str) -> str:
    """Return the address of a server without the `/v1` that OpenAI's clients end it with.

    Raises:
        ConfigError: `url` is not the URL of a web server.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in {"http", "https"} or not parsed.host or not 0 < (parsed.port or 80) <= _LARGEST_PORT:
        raise ConfigError(f"{url!r} is not the URL of a web server; write it as http://127.0.0.1:8000.", param="url")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def environment_key(environ: Mapping[str, str], *variables: str) -> str | None:
    """Return the first key that is in one of the variables, by default in those that `steerserve serve` reads."""
    for variable in variables or KEY_VARIABLES:
        if keys := [key.strip() for key in environ.get(variable, "").split(",") if key.strip()]:
            return keys[0]
    return None


class ServerClient:
    """Sends requests to one server and waits for the answers. Any thread."""

    def __init__(self, url: str, key: str | None, *, max_attempts: int = 1) -> None:
        """Send requests to the server at `url`, with or without `/v1`.

        Args:
            url: The server's address.
            key: Its API key; None if it needs none.
            max_attempts: How often a request is sent while the server is busy.

        Raises:
            ConfigError: `url` is not the URL of a web server, or `key` cannot be an API key.
        """
        self.url = base_url(url)
        self._max_attempts = max_attempts
        self._http = httpx.Client(base_url=self.url, headers=_headers(key), timeout=_timeout(READ_TIMEOUT_S))

    def close(self) -> None:
        """Close the connections. Any number of times."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, path: str) -> dict[str, Any]:
        """Return the object at `path`, such as `/v1/models`; errors are those of `request`."""
        return self.request("GET", path)

    def post(self, path: str, json: Mapping[str, Any]) -> dict[str, Any]:
        """Send an object and return the answer; errors are those of `request`."""
        return self.request("POST", path, json)

    def request(self, method: str, path: str, json: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send a request and return the object that the server answers.

        Raises:
            ConfigError: the server refuses the key.
            RefusedError: the server refuses the request.
            ServerError: the server cannot be reached, is busy or failed.
        """
        for attempt in range(1, self._max_attempts + 1):
            try:
                response = self._http.request(method, path, json=json)
            except httpx.HTTPError as error:
                raise connection_error(error, self.url) from error
            if response.status_code not in BUSY or attempt == self._max_attempts:
                break
            time.sleep(retry_delay_s(response))
        return read_object(response, self.url)

    def stream(self, path: str, json: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Send an object and yield the events of the answer, each with its name (`message` if it has none).

        Raises:
            ConfigError: the server refuses the key.
            RefusedError: the server refuses the request.
            ServerError: the server cannot be reached, is busy, fails or breaks off.
        """
        reader = EventReader(self.url)
        try:
            with self._http.stream("POST", path, json=json) as response:
                if not response.is_success:
                    response.read()
                    read_object(response, self.url)
                for line in response.iter_lines():
                    if (event := reader.feed(line)) is not None:
                        yield event
        except httpx.HTTPError as error:
            raise connection_error(error, self.url) from error
        reader.check_done()


class AsyncServerClient:
    """Sends requests to one server, or to an application in this process. One event loop uses it."""

    def __init__(
        self,
        url: str,
        key: str | None,
        *,
        max_attempts: int = 1,
        read_timeout_s: float | None = READ_TIMEOUT_S,
        app: Any = None,  # noqa: ANN401 any ASGI application
    ) -> None:
        """Send requests to the server at `url`, with or without `/v1`.

        Args:
            url: The server's address.
            key: Its API key; None if it needs none.
            max_attempts: How often a request is sent while the server is busy.
            read_timeout_s: Longest silence of the server; None for no bound.
            app: An ASGI application to call without a socket, in place of a server at `url`.

        Raises:
            ConfigError: `url` is not the URL of a web server, or `key` cannot be an API key.
        """
        self.url = base_url(url)
        self.name = self.url if app is None else "the server in this process"
        """What messages call the server."""
        self._max_attempts = max_attempts
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers=_headers(key),
            timeout=_timeout(read_timeout_s),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            transport=None if app is None else httpx.ASGITransport(app),
        )

    @classmethod
    def inside(cls, app: Any, key: str | None, *, max_attempts: int = 1) -> Self:  # noqa: ANN401 any ASGI application
        """Send requests to an application in this process, without a socket."""
        return cls(IN_PROCESS, key, max_attempts=max_attempts, read_timeout_s=None, app=app)

    async def close(self) -> None:
        """Close the connections. Any number of times."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def get(self, path: str) -> dict[str, Any]:
        """Return the object at `path`, such as `/v1/models`; errors are those of `request`."""
        return await self.request("GET", path)

    async def post(self, path: str, json: Mapping[str, Any]) -> dict[str, Any]:
        """Send an object and return the answer; errors are those of `request`."""
        return await self.request("POST", path, json)

    async def request(self, method: str, path: str, json: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send a request and return the object that the server answers; errors are those of `ServerClient.request`."""
        for attempt in range(1, self._max_attempts + 1):
            try:
                response = await self._http.request(method, path, json=json)
            except httpx.HTTPError as error:
                raise connection_error(error, self.name) from error
            if response.status_code not in BUSY or attempt == self._max_attempts:
                break
            await asyncio.sleep(retry_delay_s(response))
        return read_object(response, self.name)

    async def stream(self, path: str, json: Mapping[str, Any]) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Send an object and yield the events of the answer; errors are those of `ServerClient.stream`."""
        reader = EventReader(self.name)
        try:
            async with self._http.stream("POST", path, json=json) as response:
                if not response.is_success:
                    await response.aread()
                    read_object(response, self.name)
                async for line in response.aiter_lines():
                    if (event := reader.feed(line)) is not None:
                        yield event
        except httpx.HTTPError as error:
            raise connection_error(error, self.name) from error
        reader.check_done()


def _headers(key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {check_key(key, 'The API key')}"} if key else {}


def _timeout(read_s: float | None) -> httpx.Timeout:
    return httpx.Timeout(_CONNECT_TIMEOUT_S, read=read_s, pool=None)
