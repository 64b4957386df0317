"""The model of a running server: every call is a request to the route of that name."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, urlencode

from steerserve.client.server_client import ServerClient, environment_key
from steerserve.core.errors import UnsupportedParameterError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from steerserve.api.backend import Json, Kind
    from steerserve.requests.preset_checks import CheckResult
    from steerserve.requests.preset_making import MadePreset
    from steerserve.store.search import Sort

_ATTEMPTS = 5
"""How often a request is sent while the server is busy."""
_PATHS: dict[Kind, str] = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


class RemoteBackend:
    """The `Backend` of a server behind an address. Any thread."""

    def __init__(self, url: str, key: str | None) -> None:
        """Connect to a server and ask which model it serves.

        Raises:
            SteerserveError: no steerserve answers there, or it refuses the key.
        """
        self._client = ServerClient(
            url, key if key is not None else environment_key(os.environ), max_attempts=_ATTEMPTS
        )
        models = self._client.get("/v1/models")["data"]
        self._model_id = next(str(entry["id"]) for entry in models if not entry.get("parent"))
        self._presets = [str(entry["id"]).rpartition("@")[2] for entry in models if entry.get("parent")]

    @property
    def model_id(self) -> str:
        """The name of the served model."""
        return self._model_id

    def generate(self, kind: Kind, body: Json) -> dict[str, Any]:
        """Return the whole answer of a generating route."""
        return self._client.post(_PATHS[kind], {"model": self._model_id, **body})

    def stream(self, kind: Kind, body: Json) -> RemoteChunks:
        """Return the chunks of a generating route as they come."""
        events = self._client.stream(_PATHS[kind], {"model": self._model_id, **body, "stream": True})
        return RemoteChunks(events)

    def compare(self, body: Json) -> dict[str, Any]:
        """Return what `/v1/compare` answers."""
        return self._client.post("/v1/compare", {"store": False, **body})

    def inspect(self, body: Json) -> dict[str, Any]:
        """Return what `/v1/features/inspect` answers."""
        return self._client.post("/v1/features/inspect", body)

    def contrast(self, body: Json) -> dict[str, Any]:
        """Return what `/v1/features/contrast` answers."""
        return self._client.post("/v1/features/contrast", body)

    def search(self, query: str, *, dictionary: str | None, sort: Sort, limit: int) -> dict[str, Any]:
        """Return what `/v1/features` answers."""
        params = {"q": query, "sort": sort, "limit": limit, "dictionary": dictionary}
        given = {name: value for name, value in params.items() if value is not None}
        return self._client.get(f"/v1/features?{urlencode(given)}")

    def feature(self, dictionary: str, feature: int) -> dict[str, Any]:
        """Return what `/v1/features/{dictionary}/{feature}` answers."""
        return self._client.get(f"/v1/features/{quote(dictionary, safe='')}/{feature}")

    def dictionaries(self) -> list[dict[str, Any]]:
        """Return the loaded dictionaries, the default one marked."""
        listed: list[dict[str, Any]] = self._client.get("/v1/dictionaries")["data"]
        return listed

    def load_dictionary(self, dictionary_id: str, source: str) -> dict[str, Any]:
        """Load a dictionary on the server; return its object."""
        return self._client.post("/admin/dictionaries", {"id": dictionary_id, "source": source})

    def unload_dictionary(self, dictionary_id: str) -> None:
        """Stop serving a dictionary."""
        self._client.request("DELETE", f"/admin/dictionaries/{quote(dictionary_id, safe='')}")

    def presets(self) -> list[str]:
        """Return the names of the presets that the server lists."""
        models = self._client.get("/v1/models")["data"]
        return [str(entry["id"]).rpartition("@")[2] for entry in models if entry.get("parent")]

    def check_preset(self, name: str) -> list[CheckResult]:
        """Refuse: no route runs a preset's checks."""
        message = f"A server does not run checks ({name!r} was requested). Use SteeredModel.load() for that."
        raise UnsupportedParameterError(message, param="name")

    def make_preset(
        self,
        name: str,
        positive: Sequence[str],  # noqa: ARG002 the arguments of every backend
        negative: Sequence[str],  # noqa: ARG002
        *,
        dictionary: str | None,  # noqa: ARG002
        max_edits: int,  # noqa: ARG002
        description: str,  # noqa: ARG002
    ) -> MadePreset:
        """Refuse: no route makes a preset."""
        message = f"A server does not make presets ({name!r} was requested). Use SteeredModel.load() for that."
        raise UnsupportedParameterError(message, param="name")

    def activations(self, text: str, hook_names: Sequence[str]) -> dict[str, Float[Tensor, "pos d_model"]]:
        """Refuse: a server gives no activations.

        Raises:
            UnsupportedParameterError: always.
        """
        count = f"{len(text)} characters at {len(hook_names)} hook points"
        message = (
            f"A server gives no raw activations ({count} requested). Use SteeredModel.load() instead of connect()."
        )
        raise UnsupportedParameterError(message, param="hook_names")

    def start_job(self, kind: Literal["train", "interpret"], body: Json) -> dict[str, Any]:
        """Start a job on the server; return its object."""
        return self._client.post(f"/admin/{kind}", body)

    def job(self, job_id: str) -> dict[str, Any]:
        """Return a job as it is now."""
        return self._client.get(f"/admin/jobs/{quote(job_id, safe='')}")

    def cancel_job(self, job_id: str) -> dict[str, Any]:
        """Cancel a job; return it as it is then."""
        return self._client.request("DELETE", f"/admin/jobs/{quote(job_id, safe='')}")

    def close(self) -> None:
        """Close the connections. Any number of times."""
        self._client.close()


class RemoteChunks:
    """The chunks of one streamed answer of a server."""

    def __init__(self, events: Iterator[tuple[str, dict[str, Any]]]) -> None:
        """Read the server's events."""
        self._events = events

    def __iter__(self) -> Iterator[Json]:
        """Yield the chunks.

        Raises:
            SteerserveError: the generation failed.
        """
        for _, chunk in self._events:
            yield chunk

    def close(self) -> None:
        """End the generation: the server stops when its client leaves. Any number of times."""
        close = getattr(self._events, "close", None)
        if close is not None:
            close()
