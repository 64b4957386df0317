"""The server that is measured, and what it says that it serves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steerserve.bench.workload import DictionaryInfo
from steerserve.client.served import default_dictionary, describe_server

if TYPE_CHECKING:
    from collections.abc import Mapping

    from steerserve.client.server_client import AsyncServerClient


@dataclass(frozen=True, slots=True)
class Target:
    """A server that answers."""

    url: str
    """Its address."""
    model: str
    """Id of the served model."""
    dictionary: DictionaryInfo | None
    """The default dictionary; None if the server has none, or is not a steerserve server."""
    version: Mapping[str, Any]
    """What /version answers; empty if the server has no such route."""


async def inspect(client: AsyncServerClient) -> Target:
    """Ask the server what it serves.

    Raises:
        SteerserveError: no server answers, the server refuses the key, or it serves no model.
    """
    served = await describe_server(client)
    dictionary = default_dictionary(served.dictionaries)
    info = None if dictionary is None else DictionaryInfo(dictionary["id"], dictionary["d_sae"])
    return Target(client.url, served.model, info, served.version)
