"""Asking a language model behind any OpenAI-compatible endpoint. Knows HTTP, not features."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx

from steerserve.core.errors import ConfigError, SteerserveError

if TYPE_CHECKING:
    from collections.abc import Mapping

_TIMEOUT = httpx.Timeout(10.0, read=120.0)
_MAX_ATTEMPTS = 5
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0
_RETRIED = frozenset({408, 409, 429, 500, 502, 503, 504})
_REFUSED = frozenset({400, 422})
_OPTIONAL = ("max_tokens", "temperature")
"""Fields that some models know by another name, or not at all."""
_THOUGHT = ("<think>", "</think>")
_THOUGHT_TOKENS = 1024
"""Given to a model that thinks, beside those of its answer."""
_CHARS_A_TOKEN = 4
_SHOWN_CHARS = 200


class EndpointError(SteerserveError):
    """The endpoint cannot be used: it is not there, refuses the key, or answers what is no chat completion."""


class ChatEndpoint:
    """Sends chat requests to one model; counts what they cost. One event loop uses it."""

    def __init__(self, url: str, model: str, key: str | None) -> None:
        """Ask `model` at `url`, which is what OpenAI's clients call `base_url`.

        Raises:
            ConfigError: `url` is none of a web server, or `key` can be no key.
        """
        _check_url(url)
        key = (key or "").strip()
        if not (key.isascii() and key.isprintable()):
            message = "The key for the endpoint has characters that no key has; look at where it was copied from."
            raise ConfigError(message)
        self.model = model
        self.num_tokens = 0
        """Of all prompts and answers so far; estimated where the endpoint does not say."""
        self._refused: set[str] = set()
        self._thinks = False
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.AsyncClient(base_url=url.rstrip("/") + "/", headers=headers, timeout=_TIMEOUT)
        self._url = url

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def ask(self, system: str, user: str, *, max_tokens: int) -> str:
        """Return the answer's text; what may pass is tried again, after the time that the endpoint names.

        Raises:
            EndpointError: it cannot be had.
        """
        wait_s = _FIRST_WAIT_S
        attempt = 0
        while attempt < _MAX_ATTEMPTS:
            body = self._body(system, user, max_tokens)
            try:
                response = await self._client.post("chat/completions", json=body)
            except httpx.HTTPError as error:
                reason = str(error) or type(error).__name__
            else:
                if response.is_success:
                    text = self._read(response, len(system) + len(user))
                    if self._thinks or not _is_cut_in_thought(text):
                        return _without_thought(text)
                    self._thinks = True
                    continue
                if self._adapts(response, body):
                    continue
                reason = f"status {response.status_code}: {response.text[:_SHOWN_CHARS]}"
                if response.status_code not in _RETRIED:
                    raise EndpointError(f"{self._url} refuses requests for {self.model!r} ({reason}).")
                wait_s = max(wait_s, _seconds(response.headers.get("retry-after")))
            attempt += 1
            if attempt < _MAX_ATTEMPTS:
                await asyncio.sleep(min(wait_s, _LONGEST_WAIT_S))
                wait_s *= 2
        raise EndpointError(f"{self._url} does not answer requests for {self.model!r} ({reason}).")

    def _body(self, system: str, user: str, max_tokens: int) -> dict[str, Any]:
        wanted = max_tokens + (_THOUGHT_TOKENS if self._thinks else 0)
        body = {
            "model": self.model,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
            "max_tokens": wanted,
            "temperature": 0,
        }
        if "max_tokens" in self._refused:
            body["max_completion_tokens"] = wanted
        return {name: value for name, value in body.items() if name not in self._refused}

    def _adapts(self, response: httpx.Response, body: Mapping[str, Any]) -> bool:
        """Tell whether another form of the request may please an endpoint that has just refused this one."""
        if response.status_code not in _REFUSED:
            return False
        named = [name for name in _OPTIONAL if name in body and name in response.text]
        self._refused.update(named)
        # What wants another name for the bound is a model that thinks before it answers, within that bound.
        self._thinks |= "max_tokens" in named
        return bool(named)

    def _read(self, response: httpx.Response, num_chars: int) -> str:
        try:
            answer: Any = response.json()
            text = answer["choices"][0]["message"]["content"] or ""
            used = (answer.get("usage") or {}).get("total_tokens")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            message = f"{self._url} answers what is no chat completion: {response.text[:_SHOWN_CHARS]}"
            raise EndpointError(message) from error
        if not isinstance(text, str):
            raise EndpointError(f"{self._url} answers what is no text: {str(text)[:_SHOWN_CHARS]}")
        if not isinstance(used, int) or isinstance(used, bool) or used <= 0:
            used = max((num_chars + len(text)) // _CHARS_A_TOKEN, 1)
        self.num_tokens += used
        return text


def _check_url(url: str) -> None:
    try:
        parsed = httpx.URL(url)
        if parsed.scheme in {"http", "https"} and parsed.host:
            return
    except httpx.InvalidURL:
        pass
    message = f"{url!r} is no address of an OpenAI-compatible endpoint, such as https://api.openai.com/v1."
    raise ConfigError(message)


def _is_cut_in_thought(text: str) -> bool:
    return text.lstrip().startswith(_THOUGHT[0]) and _THOUGHT[1] not in text


def _without_thought(text: str) -> str:
    """Return what follows a model's thoughts; nothing where these were cut off."""
    if not text.lstrip().startswith(_THOUGHT[0]):
        return text
    return text.partition(_THOUGHT[1])[2].strip()


def _seconds(header: str | None) -> float:
    try:
        return max(float(header or 0), 0.0)
    except ValueError:  # a date, which no endpoint of this kind is known to send
        return 0.0
