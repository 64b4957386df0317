"""What a server says that it serves: its model, its dictionaries and its versions."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from steerserve.client.answers import RefusedError, ServerError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from steerserve.client.server_client import AsyncServerClient


@dataclass(frozen=True, slots=True)
class ServerDescription:
    """What one server serves."""

    model: str
    """Id of the served model."""
    dictionaries: tuple[Mapping[str, Any], ...]
    """The entries of /v1/dictionaries; empty if the server has no such route."""
    version: Mapping[str, Any]
    """What /version answers: the versions of steerserve and its libraries; empty if the server has no such route."""


async def describe_server(client: AsyncServerClient) -> ServerDescription:
    """Ask a server what it serves; it need not be a steerserve server.

    Raises:
        ConfigError: the server refuses the key.
        ServerError: the server cannot be reached, fails, or serves no model.
    """
    model = served_model(await client.get("/v1/models"), client.name)
    listed = await _get_optional(client, "/v1/dictionaries")
    version = await _get_optional(client, "/version")
    return ServerDescription(model, tuple(listed.get("data") or ()), version)


def served_model(listing: Mapping[str, Any], name: str) -> str:
    """Return the id of the model in an answer of /v1/models; presets are listed there as its children.

    Raises:
        ServerError: the server `name` lists no model.
    """
    ids = [entry["id"] for entry in listing.get("data") or () if not entry.get("parent")]
    if not ids:
        raise ServerError(f"{name} serves no model.")
    return str(ids[0])


def default_dictionary(dictionaries: tuple[Mapping[str, Any], ...]) -> Mapping[str, Any] | None:
    """Return the dictionary that requests use if they name none; None if the server has no dictionary."""
    first = dictionaries[0] if dictionaries else None
    return next((dictionary for dictionary in dictionaries if dictionary.get("default")), first)


async def _get_optional(client: AsyncServerClient, path: str) -> dict[str, Any]:
    try:
        return await client.get(path)
    except RefusedError as error:
        if error.status == HTTPStatus.NOT_FOUND:
            return {}
        raise
