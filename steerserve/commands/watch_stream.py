"""A watched answer of a running server, token by token. Knows HTTP, not the terminal."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from steerserve.core.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_TIMEOUT = httpx.Timeout(5.0, read=600.0, pool=None)
_SHOWN_CHARS = 200


class WatchError(StartupError):
    """Nothing can be watched: no server answers, or it refuses the request."""


@dataclass(frozen=True, slots=True)
class SeenFeature:
    """A feature at a token."""

    feature: int
    activation: float
    label: str | None


@dataclass(frozen=True, slots=True)
class SeenToken:
    """A token with what was active when it was chosen."""

    text: str
    is_prompt: bool
    watched: float | None
    """Activation of the feature that was asked for."""
    top: tuple[SeenFeature, ...]
    skipped: str | None
    edited: Mapping[int, float]
    """What steering made of features' activations."""


@dataclass(frozen=True, slots=True)
class FeatureInfo:
    """What the server knows of a feature."""

    label: str | None
    max: float | None
    """Its largest activation in the text that its dictionary was interpreted with."""


class WatchClient:
    """Talks to one server."""

    def __init__(self, url: str, key: str | None) -> None:
        """Talk to the server at `url`, with or without the /v1 that OpenAI's clients want.

        Raises:
            WatchError: that is none of a web server.
        """
        try:
            parsed = httpx.URL(url)
            parsed = parsed if parsed.scheme in {"http", "https"} and parsed.host else httpx.URL()
        except httpx.InvalidURL:
            parsed = httpx.URL()
        if not parsed.host:
            raise WatchError(f"--url: {url!r} is no URL of a web server, such as http://127.0.0.1:8000.")
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(base_url=url.rstrip("/").removesuffix("/v1"), headers=headers, timeout=_TIMEOUT)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def model(self) -> str:
        """Return the id of the served model.

        Raises:
            WatchError: none answers there, it wants a key, or it serves none.
        """
        ids = [one["id"] for one in self._get("/v1/models").get("data") or () if not one.get("parent")]
        if not ids:
            raise WatchError(f"{self._client.base_url} serves no model.")
        return str(ids[0])

    def dictionary(self, dictionary: str | None) -> str:
        """Return the id of the dictionary that is meant, the default one for None.

        Raises:
            WatchError: there is none.
        """
        if dictionary is not None:
            return dictionary  # whether it is loaded, the server says better
        listed = self._get("/v1/dictionaries").get("data") or []
        chosen = next((one["id"] for one in listed if one.get("default")), None)
        if chosen is None:
            raise WatchError(f"{self._client.base_url} has no dictionary, so there are no features to watch.")
        return str(chosen)

    def feature(self, dictionary: str, feature: int) -> FeatureInfo:
        """Return what is known of a feature, which may be nothing."""
        try:
            found = self._get(f"/v1/features/{dictionary}/{feature}")
        except WatchError:  # not interpreted, or not there, which the request itself will say
            return FeatureInfo(None, None)
        return FeatureInfo(found.get("label"), found.get("max") or None)

    def tokens(self, body: dict[str, Any], dictionary: str) -> Iterator[SeenToken]:
        """Send a chat request that watches `dictionary`, and yield tokens as they come.

        Raises:
            WatchError: the server refuses it, or breaks off.
        """
        try:
            with self._client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
                if response.is_error:
                    response.read()
                    raise _refusal(response)
                for line in response.iter_lines():
                    if line.startswith("data: {"):
                        yield from _seen(json.loads(line.removeprefix("data: ")), dictionary)
        except (httpx.HTTPError, ValueError) as error:
            raise self._unreachable(error) from error

    def _get(self, path: str) -> dict[str, Any]:
        try:
            response = self._client.get(path)
            if response.is_error:
                raise _refusal(response)
            answer = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise self._unreachable(error) from error
        return answer if isinstance(answer, dict) else {}

    def _unreachable(self, error: Exception) -> WatchError:
        reason = str(error) or type(error).__name__
        message = (
            f"No server of ours answers at {self._client.base_url} ({reason}). "
            "Start one with `steerserve serve`, or name another with --url."
        )
        return WatchError(message)


def _seen(chunk: dict[str, Any], dictionary: str) -> Iterator[SeenToken]:
    """Read a chunk; its text is shared out to its tokens, the last of which gets what is not theirs."""
    if error := chunk.get("error"):
        raise WatchError(f"The server failed: {error.get('message') if isinstance(error, dict) else error}")
    for choice in chunk.get("choices") or ():
        entries, text = choice.get("features") or [], choice.get("delta", {}).get("content") or ""
        is_prompt = "role" in choice.get("delta", {})
        pieces = [str(entry["token"]) for entry in entries]
        if not is_prompt and "".join(pieces) != text:  # a character, or the start of a stop string, was held back
            pieces = [*([""] * (len(entries) - 1)), text]
        if not entries and text:
            yield SeenToken(text, is_prompt=False, watched=None, top=(), skipped=None, edited={})
        for entry, piece in zip(entries, pieces, strict=False):
            yield _token(entry["dictionaries"][dictionary], piece, is_prompt=is_prompt)


def _token(reading: dict[str, Any], text: str, *, is_prompt: bool) -> SeenToken:
    top = [SeenFeature(one["feature"], one["activation"], one.get("label")) for one in reading["top"]]
    watched = reading["watch"][0] if reading["watch"] else None
    edited = {int(feature): activation for feature, activation in (reading.get("edited") or {}).items()}
    return SeenToken(text, is_prompt, watched, tuple(top), reading.get("skipped"), edited)


def _refusal(response: httpx.Response) -> WatchError:
    try:
        said = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        said = f"{response.request.url} answered {response.status_code}: {response.text[:_SHOWN_CHARS]}"
    return WatchError(said)
