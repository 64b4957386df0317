"""`/v1/completions`: the request, the answer and the chunks of a stream."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from steerserve.core.errors import InvalidRequestError, UnsupportedParameterError
from steerserve.wire.base import ResponseModel, absent_if_none
from steerserve.wire.sampling import INT64_MAX, GenerationFields
from steerserve.wire.unsupported import COMPLETIONS, documented, refuse_unsupported
from steerserve.wire.usage import Usage
from steerserve.wire.watching import WatchedToken, features_field, prompt_features_field

Prompt = str | tuple[int, ...]
"""A text, or token ids."""

_PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}},
        {"type": "array", "items": {"type": "integer"}},
        {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
    ]
}


def _extend_schema(schema: dict[str, Any]) -> None:
    schema["properties"]["prompt"] |= _PROMPT_SCHEMA
    for key in ("type", "items"):
        schema["properties"]["prompt"].pop(key, None)
    schema["properties"].update(documented(COMPLETIONS))


class CompletionRequest(GenerationFields):
    """A raw prompt to continue. Unknown fields are ignored; null means left out."""

    model_config = ConfigDict(json_schema_extra=_extend_schema)

    prompt: tuple[Prompt, ...] = Field(
        description="A text, token ids, or a list of either; each prompt gives n choices.",
        examples=["The bridge over the river"],
    )
    max_tokens: int = Field(
        default=16, ge=0, le=INT64_MAX, description="Generated tokens at most; 0 only reads the prompt (for `echo`)."
    )
    echo: bool = Field(default=False, description="Give the prompt back before the completion.")
    logprobs: int | None = Field(
        default=None, ge=0, le=20, description="Give log-probabilities, and those of this many likeliest tokens."
    )
    best_of: int | None = Field(default=None, ge=1, le=128, description="Only 1 or the same as `n`.")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:  # noqa: ANN401 whatever the client sent
        if isinstance(data, dict):
            refuse_unsupported(data, COMPLETIONS)
        return data

    @field_validator("prompt", mode="before")
    @classmethod
    def _as_list_of_prompts(cls, value: object) -> tuple[Prompt, ...]:
        if isinstance(value, str):
            return (value,)
        if not isinstance(value, list):
            kind, expected = "one_or_many", "a string, an array of strings, or one or more arrays of token ids"
            raise PydanticCustomError(kind, "{expected}", {"expected": expected})
        if not value:
            raise InvalidRequestError("Invalid value for 'prompt': the array is empty.", param="prompt")
        if type(value[0]) is int:
            return (_token_ids(value, "prompt"),)
        return tuple(_one_prompt(prompt, f"prompt[{place}]") for place, prompt in enumerate(value))

    @model_validator(mode="after")
    def _refuse_ranking(self) -> CompletionRequest:
        if self.best_of not in {None, 1, self.n}:
            message = f"'best_of' is supported only as 1 or the same as 'n' ({self.n}): samples are not ranked."
            raise UnsupportedParameterError(message, param="best_of", code="unsupported_value")
        return self


def _one_prompt(value: object, param: str) -> Prompt:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return _token_ids(value, param)
    message = f"Invalid type for '{param}': expected a string or an array of token ids."
    raise InvalidRequestError(message, param=param, code="invalid_type")


def _token_ids(values: list[Any], param: str) -> tuple[int, ...]:
    for place, value in enumerate(values):
        if type(value) is not int:
            message = f"Invalid type for '{param}[{place}]': expected a token id, which is an integer."
            raise InvalidRequestError(message, param=f"{param}[{place}]", code="invalid_type")
    return tuple(values)


class CompletionLogprobs(ResponseModel):
    """Log-probabilities in the shape of text completions: four lists of equal length."""

    tokens: list[str] = Field(description="Text of each token; bytes that are no character as `bytes:\\xNN`.")
    token_logprobs: list[float | None] = Field(
        description="Natural logarithms, before temperature, -9999 at least; null for a prompt's first token."
    )
    top_logprobs: list[dict[str, float] | None] = Field(
        description="The likeliest tokens at each place, and the token that is there."
    )
    text_offset: list[int] = Field(description="Where each token starts in the choice's text, in characters.")


class CompletionChoice(ResponseModel):
    """One completion, or what a chunk adds to it."""

    index: int = Field(description="Number of the prompt times n, plus number of the sample.")
    text: str = Field(description="The text.")
    logprobs: CompletionLogprobs | None = Field(default=None, description="Where asked for.")
    finish_reason: Literal["stop", "length"] | None = Field(
        default=None, description="`length`: the token limit ended it. Null in a stream's chunks but the last."
    )
    stop_reason: str | int | None = absent_if_none("The stop string or stop token that ended it.")
    features: list[WatchedToken] | None = features_field()
    prompt_features: list[WatchedToken] | None = prompt_features_field()
    steering: dict[str, Any] | None = absent_if_none("This choice's receipt, if there are several.")


class CompletionChunk(ResponseModel):
    """One event of a streamed answer."""

    id: str = Field(description="Starts with `cmpl-`; the same in all chunks.")
    object: Literal["text_completion"] = Field(default="text_completion", description="Always this.")
    created: int = Field(description="Unix time in seconds.")
    model: str = Field(description="The model's id.")
    choices: list[CompletionChoice] = Field(description="In order of `index`; in a chunk one, or none with the usage.")
    system_fingerprint: str = Field(description="The same for the same model, server and steering.")
    steering: dict[str, Any] | None = absent_if_none(
        "What was really done (of choice 0 of several; in a stream: of the chunk's); absent without steering."
    )


class CompletionUsageChunk(CompletionChunk):
    """A chunk of a stream with `stream_options.include_usage`."""

    usage: Usage | None = Field(default=None, description="Null but in the last chunk (unless continuous).")


class Completion(CompletionChunk):
    """The answer to a request that is not streamed."""

    usage: Usage = Field(description="Tokens read and generated.")
