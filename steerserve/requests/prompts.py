"""From conversations and texts to token ids that fit into the context."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from steerserve.core.errors import ContextLengthError, InvalidRequestError
from steerserve.core.findings import show_value
from steerserve.core.literals import JSON_WORDS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from steerserve.requests.served import ServedModel
    from steerserve.wire.completions import Prompt

_LARGE_PROMPT_CHARS = 16_384
"""Longer prompts are tokenised in a thread, so that they do not stall other streams."""
_MESSAGE_CHARS = 64
"""Cost of a message in the template beside its text, in characters."""
_SYSTEM_ROLES = frozenset({"system", "developer"})


async def render_chat(
    served: ServedModel, messages: Sequence[Mapping[str, str]], system: str | None, *, add_generation_prompt: bool
) -> tuple[int, ...]:
    """Return the tokens of a conversation; `system` is its system prompt if it has none.

    Raises:
        InvalidRequestError: the model's chat template refuses the conversation.
    """
    if system is not None and not has_system_prompt(messages):
        messages = [{"role": "system", "content": system}, *messages]

    def render() -> list[int]:
        return served.tokenizer.render_chat(messages, add_generation_prompt=add_generation_prompt)

    num_chars = sum(_MESSAGE_CHARS + len(message["content"]) for message in messages)
    return tuple(await asyncio.to_thread(render) if num_chars > _LARGE_PROMPT_CHARS else render())


def has_system_prompt(messages: Sequence[Mapping[str, str]]) -> bool:
    """Tell whether a conversation has a system prompt."""
    return any(message["role"] in _SYSTEM_ROLES for message in messages)


def replace_system_prompt(messages: Sequence[dict[str, str]], system: str) -> list[dict[str, str]]:
    """Return a conversation that begins with `system`, which replaces a system prompt at the beginning."""
    begins_with_system = messages[0]["role"] in _SYSTEM_ROLES
    return [{"role": "system", "content": system}, *messages[1 if begins_with_system else 0 :]]


async def encode_prompts(served: ServedModel, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
    """Return the token ids of raw prompts.

    Raises:
        InvalidRequestError: a prompt is empty, or has a token id that the model does not have.
    """

    def encode() -> list[tuple[int, ...]]:
        # A single prompt may have been sent alone or in a list of one, so its parameter has no index.
        params = ["prompt"] if len(prompts) == 1 else [f"prompt[{index}]" for index in range(len(prompts))]
        return [_encode(served, prompt, param) for prompt, param in zip(prompts, params, strict=True)]

    is_large = sum(len(prompt) for prompt in prompts if isinstance(prompt, str)) > _LARGE_PROMPT_CHARS
    return await asyncio.to_thread(encode) if is_large else encode()


def check_context(
    served: ServedModel, num_prompt_tokens: int, requested: int | None, default: int | None, *, param: str
) -> int:
    """Return how many tokens may be generated after a prompt. LangChain and LiteLLM rely on the messages' wording.

    Args:
        served: The model, whose context length is the limit.
        num_prompt_tokens: Length of the prompt.
        requested: The limit that the client sent.
        default: The limit that a preset sets. It is reduced to what fits, because the client did not request it.
        param: The field that holds the prompt.

    Raises:
        ContextLengthError: the prompt does not fit, or not together with the requested tokens.
    """
    context = served.context_length
    if num_prompt_tokens > context or (num_prompt_tokens == context and requested != 0):
        message = (
            f"This model's maximum context length is {context} tokens. However, your prompt is too long: it has "
            f"{num_prompt_tokens} tokens. Please reduce the length of the {param}."
        )
        raise ContextLengthError(message, param=param)
    room = context - num_prompt_tokens
    if requested is None:
        return room if default is None else min(default, room)
    if requested > room:
        message = (
            f"This model's maximum context length is {context} tokens. However, you requested "
            f"{num_prompt_tokens + requested} tokens ({num_prompt_tokens} in the {param}, {requested} in the "
            f"completion). Please reduce the length of the {param} or completion."
        )
        raise ContextLengthError(message, param=param)
    return requested


def _encode(served: ServedModel, prompt: Prompt, param: str) -> tuple[int, ...]:
    if isinstance(prompt, str):
        ids = tuple(served.tokenizer.encode(prompt))
    else:
        ids, vocab_size = prompt, served.tokenizer.vocab_size
        invalid = next((token_id for token_id in ids if not 0 <= token_id < vocab_size), None)
        if invalid is not None:
            got = show_value(invalid, JSON_WORDS)
            message = f"Invalid value for '{param}': token ids are 0 to {vocab_size - 1}, but got {got}."
            raise InvalidRequestError(message, param=param)
    if not ids:
        message = f"Invalid value for '{param}': a prompt must have at least one token. Send some text or a BOS token."
        raise InvalidRequestError(message, param=param)
    return ids
