"""Documented fields of other servers that this one does not support: refused with advice, never silently ignored.

A value that asks for nothing is accepted, because many clients send every field that they know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steerserve.core.errors import UnsupportedParameterError
from steerserve.core.findings import show_value
from steerserve.core.literals import JSON_WORDS


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A field that is refused, unless its value is harmless."""

    advice: str
    """One sentence: what this server does, or what to send instead."""
    harmless: tuple[object, ...] = ()
    """Values that are accepted, because they ask for nothing."""


_STRUCTURED = "A later version will have structured output."
_SAMPLER = "This server does not have this sampler; use temperature, top_p, top_k and min_p."

_ANY_ROUTE: Mapping[str, Unsupported] = {
    "guided_json": Unsupported(_STRUCTURED),
    "guided_regex": Unsupported(_STRUCTURED),
    "guided_choice": Unsupported(_STRUCTURED),
    "guided_grammar": Unsupported(_STRUCTURED),
    "structured_outputs": Unsupported(_STRUCTURED),
    "grammar": Unsupported(_STRUCTURED, ("",)),
    "json_schema": Unsupported(_STRUCTURED),
    "use_beam_search": Unsupported("This server has no beam search; n draws independent samples.", (False,)),
    "length_penalty": Unsupported("It belongs to beam search, which this server does not have.", (1, 1.0)),
    "bad_words": Unsupported("Forbid single tokens with logit_bias.", ([],)),
    "allowed_token_ids": Unsupported("Raise or lower single tokens with logit_bias."),
    "logits_processors": Unsupported("This server runs no code from requests."),
    "prompt_logprobs": Unsupported("Use /v1/completions with echo and logprobs."),
    "truncate_prompt_tokens": Unsupported("This server never truncates prompts; shorten the prompt.", (-1,)),
    "skip_special_tokens": Unsupported("Special tokens are never part of the text.", (True,)),
    "spaces_between_special_tokens": Unsupported("Special tokens are never part of the text.", (True,)),
    "return_tokens_as_token_ids": Unsupported("Tokens are returned as text and bytes.", (False,)),
    "return_token_ids": Unsupported("Tokens are returned as text and bytes, with logprobs.", (False,)),
    "priority": Unsupported("Requests are served in the order of their arrival.", (0,)),
    "cache_salt": Unsupported("Prefixes are shared between all requests."),
    "repeat_penalty": Unsupported("Send repetition_penalty.", (1, 1.0)),
    "n_predict": Unsupported("Send max_tokens."),
    "typical_p": Unsupported(_SAMPLER, (1, 1.0)),
    "top_n_sigma": Unsupported(_SAMPLER, (-1, -1.0)),
    "mirostat": Unsupported(_SAMPLER, (0,)),
    "xtc_probability": Unsupported(_SAMPLER, (0, 0.0)),
    "dry_multiplier": Unsupported(_SAMPLER, (0, 0.0)),
}

CHAT: Mapping[str, Unsupported] = {
    **_ANY_ROUTE,
    "response_format": Unsupported(_STRUCTURED, ({"type": "text"},)),
    "modalities": Unsupported("The model reads and writes only text.", (["text"],)),
    "audio": Unsupported("The model reads and writes only text."),
    "moderation": Unsupported("This server does not moderate; the client must do it."),
    "prediction": Unsupported("This server has no speculative decoding."),
    "web_search_options": Unsupported("This server does not search the web."),
    "reasoning_effort": Unsupported("The model does not reason separately from its answer.", ("none",)),
    "verbosity": Unsupported("Ask for a length in the prompt, or set max_completion_tokens.", ("medium",)),
    "service_tier": Unsupported("This server has one tier.", ("auto", "default")),
    "store": Unsupported("Nothing is stored.", (False,)),
    "prompt_cache_retention": Unsupported("Prefixes are kept in memory only.", ("in_memory",)),
    "prompt_cache_options": Unsupported("Prefixes are always shared automatically.", ({"mode": "implicit"},)),
    "tool_choice": Unsupported("A later version will have tools.", ("none", "auto")),
    "function_call": Unsupported("A later version will have tools.", ("none", "auto")),
    "continue_final_message": Unsupported("Use /v1/completions with the rendered prompt.", (False,)),
    "chat_template": Unsupported("The model's own template is used.", ()),
    "chat_template_kwargs": Unsupported("This server passes no arguments to the model's template.", ({},)),
    "documents": Unsupported("Put documents into the messages.", ([],)),
    "add_special_tokens": Unsupported("The chat template writes the special tokens.", (False,)),
    "echo": Unsupported("Use /v1/completions.", (False,)),
}

COMPLETIONS: Mapping[str, Unsupported] = {
    **_ANY_ROUTE,
    "suffix": Unsupported("The model cannot fill in the middle.", ("",)),
    "add_special_tokens": Unsupported("Send token ids to choose the special tokens yourself.", (True,)),
}


def refuse_unsupported(body: Mapping[str, Any], fields: Mapping[str, Unsupported]) -> None:
    """Refuse a body in which one of `fields` has a value that is not harmless.

    Raises:
        UnsupportedParameterError: such a field; it is the error's `param`.
    """
    for name, rule in fields.items():
        value = body.get(name)
        if value is None or any(type(value) is type(harmless) and value == harmless for harmless in rule.harmless):
            continue
        if not rule.harmless:
            message = f"'{name}' is not supported by this server. {rule.advice}"
            raise UnsupportedParameterError(message, param=name)
        accepted = " or ".join(json.dumps(harmless) for harmless in rule.harmless)
        got = show_value(value, JSON_WORDS)
        message = f"'{name}' is supported only as {accepted}, not as {got}. {rule.advice}"
        raise UnsupportedParameterError(message, param=name, code="unsupported_value")


def documented(fields: Mapping[str, Unsupported]) -> dict[str, Any]:
    """Return the JSON Schema properties of the refused fields, for the OpenAPI document."""
    return {
        name: {"description": f"Not supported. {rule.advice}", "enum": [None, *rule.harmless]}
        for name, rule in fields.items()
    }
