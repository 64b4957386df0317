"""Fields that are known and not supported: refused with what would be right, never silently dropped.

A field here is accepted with the values that ask for nothing, since many clients send every field they know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steerserve.core.errors import UnsupportedParameterError

_MAX_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Unsupported:
    """Why a field is refused, and the values that are no reason to."""

    advice: str
    """What holds here, or what to do instead: one sentence."""
    harmless: tuple[object, ...] = ()


_STRUCTURED = "Structured output arrives in a later version."
_SAMPLER = "This sampler does not exist here; use temperature, top_p, top_k and min_p."

_ANY_ROUTE: Mapping[str, Unsupported] = {
    "guided_json": Unsupported(_STRUCTURED),
    "guided_regex": Unsupported(_STRUCTURED),
    "guided_choice": Unsupported(_STRUCTURED),
    "guided_grammar": Unsupported(_STRUCTURED),
    "structured_outputs": Unsupported(_STRUCTURED),
    "grammar": Unsupported(_STRUCTURED, ("",)),
    "json_schema": Unsupported(_STRUCTURED),
    "use_beam_search": Unsupported("There is no beam search; n draws independent samples.", (False,)),
    "length_penalty": Unsupported("It belongs to beam search, which does not exist here.", (1, 1.0)),
    "bad_words": Unsupported("Forbid single tokens with logit_bias.", ([],)),
    "allowed_token_ids": Unsupported("Raise or lower single tokens with logit_bias."),
    "logits_processors": Unsupported("Code is never taken from a request."),
    "prompt_logprobs": Unsupported("Use /v1/completions with echo and logprobs."),
    "truncate_prompt_tokens": Unsupported("Prompts are never cut; shorten the prompt.", (-1,)),
    "skip_special_tokens": Unsupported("Special tokens are never part of the text.", (True,)),
    "spaces_between_special_tokens": Unsupported("Special tokens are never part of the text.", (True,)),
    "return_tokens_as_token_ids": Unsupported("Tokens are given as text and bytes.", (False,)),
    "return_token_ids": Unsupported("Tokens are given as text and bytes, with logprobs.", (False,)),
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
    "modalities": Unsupported("The model reads and writes text alone.", (["text"],)),
    "audio": Unsupported("The model reads and writes text alone."),
    "moderation": Unsupported("Nothing is moderated here; a client must do it."),
    "prediction": Unsupported("There is no speculative decoding."),
    "web_search_options": Unsupported("The server never reaches out to the network."),
    "reasoning_effort": Unsupported("The model does not reason apart from its answer.", ("none",)),
    "verbosity": Unsupported("Ask for a length in the prompt, or set max_completion_tokens.", ("medium",)),
    "service_tier": Unsupported("There is one tier.", ("auto", "default")),
    "store": Unsupported("Nothing is stored.", (False,)),
    "prompt_cache_retention": Unsupported("Prefixes are kept in memory only.", ("in_memory",)),
    "prompt_cache_options": Unsupported("Prefixes are always shared automatically.", ({"mode": "implicit"},)),
    "tool_choice": Unsupported("Tools arrive in a later version.", ("none", "auto")),
    "function_call": Unsupported("Tools arrive in a later version.", ("none", "auto")),
    "continue_final_message": Unsupported("Use /v1/completions with the rendered prompt.", (False,)),
    "chat_template": Unsupported("The model's own template is used.", ()),
    "chat_template_kwargs": Unsupported("The model's own template takes no arguments here.", ({},)),
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
    """Refuse a body that asks for something in `fields`.

    Raises:
        UnsupportedParameterError: with the field as `param`.
    """
    for name, rule in fields.items():
        value = body.get(name)
        if value is None or any(type(value) is type(harmless) and value == harmless for harmless in rule.harmless):
            continue
        if not rule.harmless:
            message = f"'{name}' is not supported by this server. {rule.advice}"
            raise UnsupportedParameterError(message, param=name)
        accepted = " or ".join(json.dumps(harmless) for harmless in rule.harmless)
        message = f"'{name}' is supported only as {accepted}, and not as {shown(value)}. {rule.advice}"
        raise UnsupportedParameterError(message, param=name, code="unsupported_value")


def shown(value: object) -> str:
    """Write a client's value as short JSON, for a message."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def documented(fields: Mapping[str, Unsupported]) -> dict[str, Any]:
    """Give the JSON Schema properties of the refused fields, for the OpenAPI document."""
    return {
        name: {"description": f"Not supported. {rule.advice}", "enum": [None, *rule.harmless]}
        for name, rule in fields.items()
    }
