"""Asking a language model behind any OpenAI-compatible endpoint. Knows HTTP, not features."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from steerserve.core.errors import ConfigError, SteerserveError

_TIMEOUT = httpx.Timeout(10.0, read=120.0)
_MAX_ATTEMPTS = 5
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0
_RETRIED = frozenset({408, 409, 429, 500, 502, 503, 504})
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
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        body = {"model": self.model, "messages": messages, "max_tokens": max_tokens, "temperature": 0}
        wait_s = _FIRST_WAIT_S
        for attempt in range(_MAX_ATTEMPTS):
            try:
                response = await self._client.post("chat/completions", json=body)
            except httpx.HTTPError as error:
                reason = str(error) or type(error).__name__
            else:
                if response.is_success:
                    return self._read(response, len(system) + len(user))
                reason = f"status {response.status_code}: {response.text[:_SHOWN_CHARS]}"
                if response.status_code not in _RETRIED:
                    raise EndpointError(f"{self._url} refuses requests for {self.model!r} ({reason}).")
                wait_s = max(wait_s, _seconds(response.headers.get("retry-after")))
            if attempt + 1 < _MAX_ATTEMPTS:
                await asyncio.sleep(min(wait_s, _LONGEST_WAIT_S))
                wait_s *= 2
        raise EndpointError(f"{self._url} does not answer requests for {self.model!r} ({reason}).")

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
        self.num_tokens += used if isinstance(used, int) else (num_chars + len(text)) // _CHARS_A_TOKEN
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


def _seconds(header: str | None) -> float:
    try:
        return max(float(header or 0), 0.0)
    except ValueError:  # a date, which no endpoint of this kind is known to send
        return 0.0
