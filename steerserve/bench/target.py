"""The server that is measured, and what it says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from steerserve.bench.stream import BenchError, reason, refusal
from steerserve.bench.workload import DictionaryInfo

if TYPE_CHECKING:
    from collections.abc import Mapping

_LARGEST_PORT = 65_535
_TIMEOUT = httpx.Timeout(5.0, read=600.0, pool=None)


@dataclass(frozen=True, slots=True)
class Target:
    """A server that answers."""

    url: str
    model: str
    dictionary: DictionaryInfo | None
    """The one that requests use by default; None where it has none, or is no steerserve."""
    version: Mapping[str, Any]
    """What /version says; empty where there is no such route."""


def connect(url: str, key: str | None) -> httpx.AsyncClient:
    """Return a client with a connection for every stream.

    Raises:
        BenchError: `url` is none of a web server.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in {"http", "https"} or not parsed.host or not 0 < (parsed.port or 80) <= _LARGEST_PORT:
        message = f"--url: {url!r} is no URL of a web server, such as http://127.0.0.1:8000."
        raise BenchError(message)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=_TIMEOUT, limits=limits)


async def inspect(client: httpx.AsyncClient) -> Target:
    """Ask the server what it serves.

    Raises:
        BenchError: none answers there, it wants a key, or it serves no model.
    """
    models = await _get(client, "/v1/models")
    ids = [entry["id"] for entry in models.get("data") or () if not entry.get("parent")]
    if not ids:
        message = f"{client.base_url} serves no model."
        raise BenchError(message)
    dictionaries = await _get(client, "/v1/dictionaries", optional=True)
    listed = dictionaries.get("data") or []
    chosen = next((entry for entry in listed if entry.get("default")), listed[0] if listed else None)
    return Target(
        url=str(client.base_url).rstrip("/"),
        model=ids[0],
        dictionary=DictionaryInfo(chosen["id"], chosen["d_sae"]) if chosen else None,
        version=await _get(client, "/version", optional=True),
    )


async def _get(client: httpx.AsyncClient, path: str, *, optional: bool = False) -> dict[str, Any]:
    try:
        response = await client.get(path)
        if response.status_code == httpx.codes.NOT_FOUND and optional:
            return {}
        if response.is_error:
            raise refusal(response)
        answer = response.json()
    except httpx.HTTPError as error:
        message = (
            f"No server answers at {client.base_url} ({reason(error)}). "
            "Start one with `steerserve serve`, or name another with --url."
        )
        raise BenchError(message) from error
    except ValueError as error:
        message = f"{client.base_url}{path.removeprefix('/')} answered something that is not JSON."
        raise BenchError(message) from error
    return answer if isinstance(answer, dict) else {}
