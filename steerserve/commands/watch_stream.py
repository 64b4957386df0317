"""A watched answer of a running server, token by token. Knows nothing of the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steerserve.client.answers import RefusedError, ServerError
from steerserve.client.served import default_dictionary

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from steerserve.client.server_client import ServerClient


@dataclass(frozen=True, slots=True)
class SeenFeature:
    """A feature that is active at a token."""

    feature: int
    """Index of the feature in its dictionary."""
    activation: float
    """Its activation at the token."""
    label: str | None
    """Its label; None if the server has none."""


@dataclass(frozen=True, slots=True)
class SeenToken:
    """A token with the features that were active when it was chosen."""

    text: str
    """The token's text."""
    is_prompt: bool
    """Whether the token belongs to the prompt."""
    watched: float | None
    """Activation of the watched feature; None if no feature is watched or the token has no reading."""
    top: tuple[SeenFeature, ...]
    """The strongest features, the strongest first."""
    skipped: str | None
    """Why the token has no reading, such as `special`; None if it has one."""
    edited: Mapping[int, float]
    """Activations after steering, by feature."""


@dataclass(frozen=True, slots=True)
class FeatureInfo:
    """What the server knows about a feature."""

    label: str | None
    """Its label; None if the server has none."""
    max: float | None
    """Its largest activation in the text that its dictionary was interpreted with; None if it was not."""


def find_dictionary(client: ServerClient, dictionary: str | None) -> str:
    """Return the id of the dictionary to watch: `dictionary`, or the server's default for None.

    Raises:
        ServerError: the server has no dictionary.
    """
    if dictionary is not None:
        return dictionary  # the server refuses an unknown one with a better message
    default = default_dictionary(tuple(client.get("/v1/dictionaries").get("data") or ()))
    if default is None:
        raise ServerError(f"{client.url} has no dictionary, so there are no features to watch.")
    return str(default["id"])


def describe_feature(client: ServerClient, dictionary: str, feature: int) -> FeatureInfo:
    """Return what the server knows about a feature, which may be nothing."""
    try:
        answer = client.get(f"/v1/features/{dictionary}/{feature}")
    except RefusedError:  # not interpreted, or no such feature, which the request itself will say
        return FeatureInfo(None, None)
    return FeatureInfo(answer.get("label"), answer.get("max") or None)


def watch_tokens(client: ServerClient, body: Mapping[str, Any], dictionary: str) -> Iterator[SeenToken]:
    """Send a chat request that watches `dictionary`, and yield tokens as they arrive.

    Raises:
        SteerserveError: the server refuses the request, or breaks off.
    """
    for _, chunk in client.stream("/v1/chat/completions", {**body, "stream": True}):
        yield from _tokens(chunk, dictionary)


def _tokens(chunk: Mapping[str, Any], dictionary: str) -> Iterator[SeenToken]:
    """Read a chunk: each token gets its own text, and the last one the rest of the chunk's text."""
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


def _token(reading: Mapping[str, Any], text: str, *, is_prompt: bool) -> SeenToken:
    top = [SeenFeature(entry["feature"], entry["activation"], entry.get("label")) for entry in reading["top"]]
    watched = reading["watch"][0] if reading["watch"] else None
    edited = {int(feature): activation for feature, activation in (reading.get("edited") or {}).items()}
    return SeenToken(text, is_prompt, watched, tuple(top), reading.get("skipped"), edited)
