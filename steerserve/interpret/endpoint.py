"""Asking a language model behind any OpenAI-compatible endpoint, by the `openai` client. Does not know features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from steerserve.core.errors import ConfigError, SteerserveError

if TYPE_CHECKING:
    from collections.abc import Mapping

_CONNECT_S, _READ_S = 10.0, 120.0
_MAX_RETRIES = 4
"""Times that a request is repeated after an error that may pass, with growing pauses (`openai.AsyncOpenAI`)."""
_TRANSIENT = frozenset({408, 409, 429})
"""Statuses that may pass, beside those from 500 on."""
_INVALID_REQUEST = frozenset({400, 422})
_OPTIONAL = ("max_tokens", "temperature")
"""Fields that some models know by another name, or not at all."""
_THINK_TAGS = ("<think>", "</think>")
_THINK_TOKENS = 1024
"""Tokens that a model that thinks gets beside those of its answer."""
_CHARS_PER_TOKEN = 4
_SHOWN_CHARS = 200


class EndpointError(SteerserveError):
    """The endpoint cannot be used: it does not answer, refuses requests, or answers something else."""


class ChatEndpoint:
    """Sends chat requests to one model and counts their tokens. One event loop uses it."""

    def __init__(self, url: str, model: str, key: str | None) -> None:
        """Ask `model` at `url`, which OpenAI's clients call `base_url`.

        Raises:
            ConfigError: `url` is not the address of a web server, or `key` has characters that no key has.
        """
        import openai  # noqa: PLC0415 takes half a second, and only labelling needs it

        _check_url(url)
        key = (key or "").strip()
        if not (key.isascii() and key.isprintable()):
            message = "The key for the endpoint has characters that no key has; look at where it was copied from."
            raise ConfigError(message)
        self.model = model
        self.num_tokens = 0
        """Tokens of all prompts and answers so far; estimated if the endpoint does not report them."""
        self._refused_fields: set[str] = set()
        self._thinks = False
        self._url = url
        self._headers: Mapping[str, str | openai.Omit] = {} if key else {"Authorization": openai.Omit()}
        self._client = openai.AsyncOpenAI(
            base_url=url,
            api_key=key or "none",  # an empty one is an error of the client
            timeout=openai.Timeout(_CONNECT_S, read=_READ_S),
            max_retries=_MAX_RETRIES,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def ask(self, system: str, user: str, *, max_tokens: int) -> str:
        """Return the text of the model's answer; requests that fail for a reason that may pass are repeated.

        Raises:
            EndpointError: there is no answer.
        """
        import openai  # noqa: PLC0415 loaded by `__init__`

        while True:
            fields = self._fields(system, user, max_tokens)
            try:
                completion: Any = await self._client.chat.completions.create(**fields, extra_headers=self._headers)
                text = self._read(completion, len(system) + len(user))
            except openai.APIStatusError as error:
                if self._drops_fields(error.status_code, error.response.text, fields):
                    continue
                reason = f"status {error.status_code}: {error.response.text[:_SHOWN_CHARS]}"
                is_transient = error.status_code in _TRANSIENT or error.status_code >= 500  # noqa: PLR2004
                verb = "does not answer" if is_transient else "refuses"
                raise EndpointError(f"{self._url} {verb} requests for {self.model!r} ({reason}).") from error
            except openai.APIConnectionError as error:
                reason = str(error.__cause__ or error) or type(error).__name__
                raise EndpointError(f"{self._url} does not answer requests for {self.model!r} ({reason}).") from error
            except (openai.OpenAIError, ValueError, RecursionError) as error:
                message = f"{self._url} does not answer with a chat completion: {str(error)[:_SHOWN_CHARS]}"
                raise EndpointError(message) from error
            if self._thinks or not _is_cut_in_thought(text):
                return _without_thought(text)
            self._thinks = True

    def _fields(self, system: str, user: str, max_tokens: int) -> dict[str, Any]:
        limit = max_tokens + (_THINK_TOKENS if self._thinks else 0)
        fields = {
            "model": self.model,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
            "max_tokens": limit,
            "temperature": 0,
        }
        if "max_tokens" in self._refused_fields:
            fields["max_completion_tokens"] = limit
        return {name: value for name, value in fields.items() if name not in self._refused_fields}

    def _drops_fields(self, status: int, answer: str, fields: Mapping[str, Any]) -> bool:
        """Leave out the optional fields that a refusal names; tell whether there are any."""
        if status not in _INVALID_REQUEST:
            return False
        named = [name for name in _OPTIONAL if name in fields and name in answer]
        self._refused_fields.update(named)
        # A model that has another name for this limit is one that thinks before it answers, within the limit.
        self._thinks |= "max_tokens" in named
        return bool(named)

    def _read(self, completion: Any, num_chars: int) -> str:  # noqa: ANN401 the client does not validate answers
        try:
            text = completion.choices[0].message.content or ""
            num_tokens = getattr(completion.usage, "total_tokens", None)
        except (AttributeError, IndexError, TypeError, KeyError) as error:
            raise ValueError(str(completion)) from error
        if not isinstance(text, str):
            raise ValueError(str(text))  # noqa: TRY004 an answer, not an argument
        if not isinstance(num_tokens, int) or isinstance(num_tokens, bool) or num_tokens <= 0:
            num_tokens = max((num_chars + len(text)) // _CHARS_PER_TOKEN, 1)
        self.num_tokens += num_tokens
        return text


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        if parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0:
            return
    except ValueError:
        pass
    message = f"{url!r} is not the address of an OpenAI-compatible endpoint, such as https://api.openai.com/v1."
    raise ConfigError(message)


def _is_cut_in_thought(text: str) -> bool:
    return text.lstrip().startswith(_THINK_TAGS[0]) and _THINK_TAGS[1] not in text


def _without_thought(text: str) -> str:
    """Return what follows a model's thoughts; nothing if the answer ends within them."""
    if not text.lstrip().startswith(_THINK_TAGS[0]):
        return text
    return text.partition(_THINK_TAGS[1])[2].strip()
